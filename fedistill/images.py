"""Images as the method keeps them: one uint8 tensor with labels, and what they have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "DataSpec":
        """Read what `dataclasses.asdict` wrote, also after a round trip through JSON."""
        lists = ("class_names", "mean", "std")
        values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in tree.items()}
        return cls(**values)

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images [..., C, H, W] into float32 with mean 0 and std 1 per channel."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images.float() / 255 - mean) / std

    def to_uint8(self, images: Tensor) -> Tensor:
        """Undo `normalise`: round to the nearest of 256 levels, clipping what is outside."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def pixel_bounds(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the normalised values of black and white, each [C, 1, 1]."""
        mean = torch.tensor(self.mean, device=device)[:, None, None]
        std = torch.tensor(self.std, device=device)[:, None, None]
        return -mean / std, (1 - mean) / std


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
