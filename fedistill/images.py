"""Images as the method keeps them: one uint8 tensor with labels, and what they have in common."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedistill.whitening import Whitening

_ZCA = ("zca_mean", "zca_matrix")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What every image of a data set has in common.

    Attributes:
        name: for titles and folders.
        class_names: the order is the meaning of the labels.
        channels: 1 (grey) or 3 (RGB).
        size: height and width in pixels.
        mean: of each channel, in [0, 1].
        std: of each channel, in [0, 1].
        flip: a mirrored image keeps its class.
        zca: whitens what networks see, in place of mean and std; None: it does not.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    zca: Whitening | None = None

    def __post_init__(self) -> None:
        size = self.channels * self.size**2
        if self.zca is not None and len(self.zca.mean) != size:
            raise ValueError(
                f"the whitening is of {len(self.zca.mean)} numbers; accepted: {size}, for images "
                f"of {self.channels} x {self.size} x {self.size}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def as_dict(self) -> dict[str, Any]:
        """Return values for JSON; of a whitening it says no more than that there is one."""
        tree = asdict(replace(self, zca=None))
        del tree["zca"]
        return tree if self.zca is None else {**tree, "zca": True}

    def tensors(self) -> dict[str, Tensor]:
        """Return what `as_dict` leaves out, by name; nothing without a whitening."""
        if self.zca is None:
            return {}
        return dict(zip(_ZCA, (self.zca.mean, self.zca.matrix), strict=True))

    @classmethod
    def from_dict(
        cls, tree: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> "DataSpec":
        """Read what `as_dict` wrote, also after a round trip through JSON.

        Args:
            tree: of `as_dict`.
            tensors: of `tensors`; others among them are left alone.

        Raises:
            ValueError: the whitening that `tree` speaks of is missing or not of these images.
        """
        lists = ("class_names", "mean", "std")
        values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in tree.items()}
        whitened = values.pop("zca", False)
        held = tensors or {}
        missing = [name for name in _ZCA if name not in held]
        if whitened and missing:
            raise ValueError(
                f"the images are to be whitened and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing; accepted: a whitening "
                "that was fitted on their training images"
            )
        return cls(**values, zca=Whitening(*(held[name] for name in _ZCA)) if whitened else None)

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images [..., C, H, W] into what networks see, float32.

        That is mean 0 and std 1 per channel, or whitened pixels.
        """
        scaled = images.float() / 255
        if self.zca is not None:
            return self.zca.apply(scaled)
        mean, std = self._statistics(images.device)
        return (scaled - mean) / std

    def to_uint8(self, images: Tensor) -> Tensor:
        """Undo `normalise`: round to the nearest of 256 levels, clipping what is outside."""
        if self.zca is not None:
            pixels = self.zca.undo(images)
        else:
            mean, std = self._statistics(images.device)
            pixels = images * std + mean
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8)

    def clamp_(self, images: Tensor) -> Tensor:
        """Bring normalised images back to what 256 levels can show, in place; return them.

        Pixels beyond black and white are cut there. Whitened images are mapped to pixels and back.
        """
        with torch.no_grad():
            if self.zca is not None:
                return images.copy_(self.zca.apply(self.zca.undo(images).clamp_(0, 1)))
            return images.clamp_(*self.pixel_bounds(images.device))

    def pixel_bounds(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the least and the greatest normalised values, of black and white, [C, 1, 1] each.

        Whitened pictures fill no box. Theirs, [C, H, W] each, is the smallest one that holds all
        of them, and most of what it holds is no picture: `clamp_` is exact.
        """
        if self.zca is not None:
            low, high = (bound.view(-1, self.size, self.size) for bound in self.zca.bounds())
            return low.to(device), high.to(device)
        mean, std = self._statistics(torch.device(device))
        return -mean / std, (1 - mean) / std

    def outside(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the colour beyond the frame, for `crops.apply`, [C, 1, 1].

        Black; among whitened images the mean image (zeros, as DSA pads for MTT and APM).
        """
        if self.zca is not None:
            return torch.zeros(self.channels, 1, 1, device=device)
        return self.pixel_bounds(device)[0]

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _per_channel(self.mean, device), _per_channel(self.std, device)


@lru_cache(maxsize=64)  # a copy to a GPU makes it wait, and distillers clamp at every step
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]


@dataclass(frozen=True)
class ImageSet:
    """Images with hard labels: a shard of real data, or a test split.

    Attributes:
        images: uint8 [M, C, H, W].
        labels: int64 [M].
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8, self.images.dtype
        assert self.images.ndim == 4, self.images.shape
        assert self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> "ImageSet":
        """Return some of the images."""
        return ImageSet(self.images[index], self.labels[index])

    def histogram(self, num_classes: int) -> list[int]:
        """Count the images of each class."""
        return torch.bincount(self.labels, minlength=num_classes).tolist()
