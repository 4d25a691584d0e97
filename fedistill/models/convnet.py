"""ConvNet: the small network of the dataset-distillation literature.

`depth` blocks of 3x3 convolution, normalisation, ReLU and 2x2 average pooling, then one linear
layer (Gidaris and Komodakis 2018; Zhao et al., "Dataset Condensation with Gradient Matching",
2021). The instance-norm form is the one of DC, DM, MTT, IDC and DREAM; methods that match
BatchNorm statistics need the batch-norm form (RDED, SRe2L on ConvNets).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill.models.instance_norm import InstanceNorm

WIDTH = 128  # DC, DM, MTT, IDC: 128 filters in every block


def default_depth(size: int) -> int:
    """Return the depth for an image size: 3 for 28 and 32 pixels, 4 for 64 (Tiny-ImageNet).

    Pooling halves until a 4 x 4 map is left; never fewer than 2 blocks.
    """
    return max(2, math.ceil(math.log2(size / 4)))


class ConvNet(nn.Module):
    """A ConvNet for square images.

    Args:
        channels: of the image.
        size: of the image in pixels; 28 is padded to 32 by the first convolution, as in DC.
        num_classes: outputs.
        depth: number of blocks; None: by image size.
        width: filters of every block.
        norm: "batch" or "instance" (GroupNorm with one channel a group).

    Attributes:
        layout: of the weights and activations in memory. The kernels of GroupNorm want one
            channel of an image in one piece (its gradient takes 5 ms in place of 29 then, for 128
            images of 32 x 32 x 32 on one thread), all others the channels of a pixel.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        num_classes: int,
        *,
        depth: int | None = None,
        width: int = WIDTH,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.layout = torch.channels_last if norm == "batch" else torch.contiguous_format
        depth = depth or default_depth(size)
        padding = 3 if size == 28 else 1
        size += 2 * (padding - 1)
        layers: list[nn.Module] = []
        for block in range(depth):
            # No bias: the normalisation takes every constant away again, and the bias's gradient
            # alone would take longer than the rest of the first layer's backward pass.
            inputs, pad = (width, 1) if block else (channels, padding)
            layers += [
                nn.Conv2d(inputs, width, 3, padding=pad, bias=False),
                nn.BatchNorm2d(width) if norm == "batch" else InstanceNorm(width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2) if norm == "batch" else _Halve(),
            ]
            size //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * size * size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes]."""
        if self.layout == torch.contiguous_format:
            # Grey images have both layouts; which one the kernels take depends on the strides.
            images = images.clone(memory_format=torch.contiguous_format)
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class _Halve(nn.Module):
    """2x2 average pooling as a matrix product: in this layout avg_pool2d has no vector code.

    For 40 images of 32 x 32 x 32 on one thread 0.5 ms in place of 2.3, and no more for its
    gradients of any order.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mean of every 2x2 pixels, [B, C, H, W] to [B, C, H // 2, W // 2]."""
        images, channels, height, width = maps.shape
        maps = maps[:, :, : height // 2 * 2, : width // 2 * 2]
        half = torch.eye(width // 2, device=maps.device, dtype=maps.dtype)
        weights = F.interpolate(half[None], scale_factor=2, mode="nearest")[0].T / 4
        rows = maps.reshape(-1, 2 * len(weights)) @ weights.repeat(2, 1)
        return rows.view(images, channels, height // 2, width // 2)
