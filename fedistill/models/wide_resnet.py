"""Wide ResNet for small images (Zagoruyko and Komodakis, 2016): WRN-16-2 of G-VBSM and EDC.

Pre-activation blocks (normalisation, ReLU, 3x3 convolution, twice) in three groups of 16, 32 and 64
times `widen` filters; the second and third group halve the map.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class WideResNet(nn.Module):
    """A Wide ResNet for square images.

    Args:
        channels: of the image.
        num_classes: outputs.
        depth: 4 more than a multiple of 6: the convolutions and the linear layer, in all.
        widen: factor of the filters.
    """

    def __init__(self, channels: int, num_classes: int, *, depth: int = 16, widen: int = 2) -> None:
        super().__init__()
        assert depth % 6 == 4, depth
        blocks: list[nn.Module] = []
        width = 16
        for group in range(3):
            for number in range((depth - 4) // 6):
                stride = 2 if group and not number else 1
                blocks.append(_Block(width, 16 * widen * 2**group, stride))
                width = 16 * widen * 2**group
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes]."""
        maps = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.classifier(maps.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = inputs == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = F.relu(self.norm1(maps))
        around = maps if self.shortcut is None else self.shortcut(active)
        inner: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return around + inner
