"""Differentiable siamese augmentation: two batches, real and synthetic, are changed alike.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021),
Sec. 3.2. A strategy names operations, joined by "_":

    color    brightness x + b, then saturation and contrast: x moved from its mean over the
             channels, or over the whole image, by a factor
    crop     a shift by whole pixels beyond the frame
    cutout   a square in one colour
    flip     a mirror, for half of the draws and where the data set allows it
    scale    height and width zoomed each by its own factor around the centre

One draw is a value: applying it twice is what makes two batches siamese. Drawn for `count` 1 it
changes every image alike, as DSA does while it matches; with more each image has its own
strengths, as where it trains a student. DSA and DM draw one operation a time (their `aug_mode`
S), IDC and DREAM compose them.

Departures from the authors' code: composed are all operations that a strategy names, where IDC
draws one of crop, scale and rotation (its default here, `color_crop_cutout`, names one). No
rotation: shift, mirror and zoom keep rows and columns apart, so that two small matrices do them,
deterministically on a GPU too (see `crops`); a rotation needs a sampler, whose backward pass is
not deterministic there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedistill import crops
from fedistill.crops import Views
from fedistill.rules import Rule, check

OPERATIONS = ("color", "crop", "cutout", "flip", "scale")

# Strengths: `ParamDiffAug` of the authors' code, also in IDC, DREAM and MTT. Pixels are normalised.
BRIGHTNESS = 1.0  # b is uniform in -1/2 .. 1/2 of it
SATURATION = 2.0  # factor from 0 to this
CONTRAST = 0.5  # factor from this to 1 more
CROP = 0.125  # most shift, as a share of the size
CUTOUT = 0.5  # side of the square, as a share of the size
SCALE = 1.2  # zoom from its inverse to this


@dataclass(frozen=True)
class Parameters:
    """One draw: n is 1 where all images share it, else their number. None: left as it is.

    Attributes:
        color: brightness, saturation and contrast, float32 [n, 3].
        views: of `crops`, n of them: shift, zoom and mirror in one.
        hole: top, left, bottom, right in pixels, int64 [n, 4].
    """

    color: Tensor | None = None
    views: Views | None = None
    hole: Tensor | None = None

    def to(self, device: torch.device) -> "Parameters":
        """Copy the numbers to where the images are: once, if several batches are to be changed."""
        return Parameters(
            None if self.color is None else self.color.to(device),
            self.views,
            None if self.hole is None else self.hole.to(device),
        )


def operations(strategy: str) -> tuple[str, ...]:
    """Return the operations that a strategy names; none for "none".

    Raises:
        ValueError: one is not known, or is named twice.
    """
    check(accepted(strategy))
    return _named(strategy)


def accepted(strategy: str) -> Rule:
    """Rule: a strategy names known operations, each once."""
    named = _named(strategy)
    return (
        set(named) <= set(OPERATIONS) and len(set(named)) == len(named),
        f"augmentation is {strategy!r}; accepted: 'none', or some of {', '.join(OPERATIONS)}, "
        f"each at most once, joined by '_', for example '{'_'.join(OPERATIONS)}'",
    )


def _named(strategy: str) -> tuple[str, ...]:
    return () if strategy == "none" else tuple(strategy.split("_"))


def draw(
    strategy: str,
    size: int,
    generator: torch.Generator,
    *,
    flip: bool,
    compose: bool = False,
    count: int = 1,
) -> Parameters:
    """Draw what happens to a batch, and to its sibling.

    Args:
        strategy: see `operations`.
        size: height and width of the images in pixels.
        generator: decides everything.
        flip: a mirrored image keeps its class (`DataSpec.flip`); else "flip" is left out.
        compose: all operations, in the order color, geometry, cutout; else one of them at random.
        count: 1 for one draw that all images share, or their number.

    Raises:
        ValueError: the strategy is not accepted.
    """
    chosen = [name for name in operations(strategy) if flip or name != "flip"]
    if chosen and not compose:
        chosen = [chosen[int(torch.randint(len(chosen), (), generator=generator))]]
    color = views = hole = None
    if "color" in chosen:
        least = torch.tensor([-BRIGHTNESS / 2, 0.0, CONTRAST])
        span = torch.tensor([BRIGHTNESS, SATURATION, 1.0])
        color = least + span * torch.rand(count, 3, generator=generator)
    if {"crop", "flip", "scale"} & set(chosen):
        views = _draw_views(chosen, size, generator, count)
    if "cutout" in chosen:
        side = int(size * CUTOUT + 0.5)
        # The centre may lie on the border, so that less than the whole square is hidden.
        centre = torch.randint(size + 1 - side % 2, (count, 2), generator=generator)
        corner = centre - side // 2
        hole = torch.cat([corner, corner + side], 1)
    return Parameters(color, views, hole)


def _draw_views(chosen: list[str], size: int, generator: torch.Generator, count: int) -> Views:
    move, zoom = torch.zeros(count, 2), torch.ones(count, 2)
    flips = torch.zeros(count, dtype=torch.bool)
    if "crop" in chosen:
        most = int(size * CROP + 0.5)
        move = torch.randint(-most, most + 1, (count, 2), generator=generator) / size
    if "flip" in chosen:
        flips = torch.rand(count, generator=generator) < 0.5
    if "scale" in chosen:
        zoom = torch.empty(count, 2).uniform_(1 / SCALE, SCALE, generator=generator)
    return Views(torch.cat([(1 - zoom) / 2 + move, zoom], 1), flips)


def apply(images: Tensor, parameters: Parameters, outside: Tensor | None = None) -> Tensor:
    """Change a batch of images as drawn.

    Args:
        images: normalised, float [B, C, H, W].
        parameters: one draw for all, or B.
        outside: colour beyond the frame and of the hole, [C, 1, 1]; None: zero, the mean colour
            of the data, as DSA has it.

    Returns:
        Float [B, C, H, W], differentiable in `images`.
    """
    if parameters.color is not None:
        images = _recolor(images, parameters.color.to(images.device))
    if parameters.views is not None:
        images = crops.apply(images, parameters.views, outside)
    if parameters.hole is not None:
        images = _cut(images, parameters.hole.to(images.device), outside)
    return images


def _recolor(images: Tensor, color: Tensor) -> Tensor:
    brightness, saturation, contrast = color.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + saturation * (images - grey)
    level = images.mean((1, 2, 3), keepdim=True)
    return level + contrast * (images - level)


def _cut(images: Tensor, hole: Tensor, outside: Tensor | None) -> Tensor:
    down, across = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    top, left, bottom, right = hole[:, :, None].unbind(1)
    rows, columns = (down >= top) & (down < bottom), (across >= left) & (across < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, images.new_zeros(()) if outside is None else outside, images)
