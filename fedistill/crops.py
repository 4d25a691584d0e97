"""Random views of images that replay exactly from a seed (FKD, SRe2L's relabel).

A view is a box of the image, resized to the whole frame, perhaps mirrored, perhaps mixed with
another image of the same set (CutMix or Mixup). Only a seed is stored: `draw` turns it back
into boxes. On CIFAR-10 the boxes would take more bytes than the labels.

`apply` writes crop, mirror and bilinear resize as two small matrices per image,
`rows @ image @ columns.T`: one batched product each, differentiable, and deterministic on a
GPU too (the backward pass of `grid_sample` is not). Pixels outside the frame have one colour, so
the padded random shift is a box that leaves the frame.

A mosaic's tile is a sealed box: its border pixels are repeated, as if it had been cut out before
it is resized, so that no view mixes two tiles at their seam. That holds for a shifted one too.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

_LARGEST_MOVE = 0.49  # of a tile, as a share of it


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The distribution that views are drawn from.

    Attributes:
        scale: least and most area of the box, as a share of the image.
        ratio: least and most aspect ratio of the box (torchvision's RandomResizedCrop).
        shift: most pixels that the view moves in each direction, beyond the frame or the tile too.
        flip: whether half of the views are mirrored.
        tiles: an image is a mosaic of tiles x tiles single images; 1: it is not.
        tile_share: share of the views that show one tile, whole, in place of a random box.
        mix: what the view is mixed with a partner by.
        mix_alpha: the ratio is drawn from Beta(alpha, alpha).
        mix_probability: share of draws that are mixed.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shift: int = 0
    flip: bool = False
    tiles: int = 1
    tile_share: float = 0.0
    mix: Literal["cutmix", "mixup", "none"] = "none"
    mix_alpha: float = 1.0
    mix_probability: float = 1.0

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "ViewOptions":
        """Read what `dataclasses.asdict` wrote, also after a round trip through JSON."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()
        }
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; what is for mosaics alone is left out where there is none."""
        tree = asdict(self)
        if self.tiles == 1:
            del tree["tiles"], tree["tile_share"]
        return tree


@dataclass(frozen=True)
class Views:
    """One view for each of B images.

    Attributes:
        boxes: top, left, height, width as shares of the frame, float32 [B, 4].
        flips: mirrored or not, bool [B].
        sealed: whether the pixels beyond the box are out of reach, bool [B]; None: for none.
        partner: index of the image each one is mixed with, int64 [B]; None: no mixing.
        own_share: pixel weight of the image itself, 1 minus the partner's, float32 scalar.
        cut: the partner's rectangle for CutMix: top, left, bottom, right in pixels; None: Mixup.
    """

    boxes: Tensor
    flips: Tensor
    sealed: Tensor | None = None
    partner: Tensor | None = None
    own_share: float = 1.0
    cut: tuple[int, int, int, int] | None = None

    def select(self, index: Tensor) -> "Views":
        """Return the boxes and mirrors of some images; mixing is a matter of the whole set."""
        index = index.to(self.boxes.device)
        sealed = None if self.sealed is None else self.sealed[index]
        return Views(self.boxes[index], self.flips[index], sealed)


def draw(count: int, size: int, options: ViewOptions, generator: torch.Generator) -> Views:
    """Draw one view for each of `count` images of `size` pixels."""
    area = torch.empty(count).uniform_(*options.scale, generator=generator)
    log_ratio = torch.empty(count).uniform_(
        math.log(options.ratio[0]), math.log(options.ratio[1]), generator=generator
    )
    place = torch.rand(count, 2, generator=generator)
    move = torch.randint(-options.shift, options.shift + 1, (count, 2), generator=generator) / size
    mirror = torch.rand(count, generator=generator) < 0.5
    if options.scale[0] == 1.0:
        height = width = torch.ones(count)
    else:
        # A box that would leave the frame is cut at its border, as the fallback of torchvision.
        height = (area / log_ratio.exp()).sqrt().clamp(max=1.0)
        width = (area * log_ratio.exp()).sqrt().clamp(max=1.0)
    corner = place * (1 - torch.stack([height, width], 1)) + move
    boxes = torch.cat([corner, height[:, None], width[:, None]], 1)
    flips = mirror if options.flip else torch.zeros(count, dtype=torch.bool)
    sealed = None
    if options.tiles > 1:
        sealed = torch.rand(count, generator=generator) < options.tile_share
        tile = torch.randint(options.tiles**2, (count,), generator=generator)
        shown = tile_boxes(options.tiles)[tile]
        # As many pixels of the view as of a whole image; less than half of it: a tile stays itself.
        shown[:, :2] += move.clamp(-_LARGEST_MOVE, _LARGEST_MOVE) / options.tiles
        boxes = torch.where(sealed[:, None], shown, boxes)
    return _draw_mix(Views(boxes, flips, sealed), count, size, options, generator)


def tile_boxes(tiles: int) -> Tensor:
    """Return the boxes of a mosaic's tiles, row by row, float32 [tiles^2, 4]."""
    place = torch.arange(tiles**2)
    corner = torch.stack([place // tiles, place % tiles], 1) / tiles
    return torch.cat([corner, torch.full((tiles**2, 2), 1 / tiles)], 1)


def _draw_mix(
    views: Views, count: int, size: int, options: ViewOptions, generator: torch.Generator
) -> Views:
    if options.mix == "none":
        return views
    partner = torch.randperm(count, generator=generator)
    mixed = float(torch.rand((), generator=generator)) < options.mix_probability
    alpha = torch.tensor([options.mix_alpha, options.mix_alpha])
    own_share = float(torch._sample_dirichlet(alpha, generator=generator)[0])
    centre = torch.rand(2, generator=generator) * size
    if not mixed:
        return views
    if options.mix == "mixup":
        return replace(views, partner=partner, own_share=own_share)
    half = size * math.sqrt(1 - own_share) / 2
    top, left = (max(0, round(float(middle) - half)) for middle in centre)
    bottom, right = (min(size, round(float(middle) + half)) for middle in centre)
    own_share = 1 - (bottom - top) * (right - left) / size**2
    return replace(views, partner=partner, own_share=own_share, cut=(top, left, bottom, right))


def apply(images: Tensor, views: Views, outside: Tensor | None = None) -> Tensor:
    """Crop, mirror and resize each image to its own view; no mixing.

    Args:
        images: float [B, C, H, W].
        views: one for each image.
        outside: colour beyond the frame, [C, 1, 1]; None: zero, or no view leaves the frame.
            Black is not zero in normalised units: see `DataSpec.outside`.

    Returns:
        Float [B, C, H, W], differentiable in `images`.
    """
    if outside is not None:
        return apply(images - outside, views) + outside
    height, width = images.shape[-2:]
    top, left, tall, wide = views.boxes.to(images.device).unbind(1)
    sealed = None if views.sealed is None else views.sealed.to(images.device)
    rows = _interpolation(top, tall, height, sealed).to(images.dtype)
    columns = _interpolation(left, wide, width, sealed)
    flips = views.flips.to(images.device)
    columns = torch.where(flips[:, None, None], columns.flip(1), columns).to(images.dtype)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _interpolation(
    start: Tensor, length: Tensor, size: int, sealed: Tensor | None = None
) -> Tensor:
    """Return [B, size, size] bilinear weights that read `size` samples of [start, start + length].

    Row i holds the weights of the input pixels for output pixel i, centres aligned as in
    `interpolate(align_corners=False)`. Samples inside the frame repeat its border pixels as that
    does; samples outside are zero. In a sealed box, one tile of a mosaic, moved by less than half
    of it, the tile's own border pixels are repeated.
    """
    centres = torch.arange(size, device=start.device) + 0.5
    # In pixels: with shares of the frame the whole frame would be a rounding error off at size 28.
    position = start[:, None] * size + length[:, None] * centres - 0.5
    inside = (position > -0.5 - 1e-4) & (position < size - 0.5 + 1e-4)
    position = position.clamp(0, size - 1)
    if sealed is not None:
        # The tile that the middle of the box lies in. In whole pixels: a third of the frame would
        # reach a rounding error into the next one.
        tile = (start / length + 0.5).floor()
        first, last = ((tile + step) * length * size for step in (0, 1))
        first, last = first.round()[:, None], last.round()[:, None] - 1
        within = torch.minimum(torch.maximum(position, first), last)
        position = torch.where(sealed[:, None], within, position)
        inside = inside | sealed[:, None]
    pixels = torch.arange(size, device=start.device)
    weights = (1 - (position[:, :, None] - pixels).abs()).clamp(min=0)
    return weights * inside[:, :, None]


def mix(images: Tensor, partners: Tensor, views: Views) -> Tensor:
    """Mix images that are already cropped with their cropped partners.

    Args:
        images: float [B, C, H, W].
        partners: the views of the partner images, same shape.
        views: says how: `cut` pastes the partner's rectangle, else the two are averaged.
    """
    if views.cut is None:
        return views.own_share * images + (1 - views.own_share) * partners
    top, left, bottom, right = views.cut
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed


def render(images: Tensor, views: Views, index: Tensor, outside: Tensor | None = None) -> Tensor:
    """Return the views of some images of a set, mixed with their partners.

    Args:
        images: the whole set, float [M, C, H, W].
        views: one for each image of the set.
        index: which images to show, int64 [B].
        outside: as for `apply`.

    Returns:
        Float [B, C, H, W].
    """
    shown = apply(images[index], views.select(index), outside)
    if views.partner is None:
        return shown
    partner = views.partner.to(index.device)[index]
    return mix(shown, apply(images[partner], views.select(partner), outside), views)
