"""Mosaics: tiles x tiles small images in the place of one (IDC's multi-formation, RDED, LIC)."""

import torch.nn.functional as F
from torch import Tensor


def shrink(images: Tensor, tiles: int) -> Tensor:
    """Resize images [B, C, H, W] to tiles, [B, C, H / tiles, W / tiles]: bilinear, antialiased."""
    if tiles == 1:
        return images
    size = images.shape[-1] // tiles
    return F.interpolate(
        images, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )


def assemble(parts: Tensor, tiles: int) -> Tensor:
    """Lay every tiles^2 small images [M * tiles^2, C, h, w] out as one [M, C, H, W], row by row."""
    _, channels, height, width = parts.shape
    grid = parts.reshape(-1, tiles, tiles, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, tiles * height, tiles * width)


def split(images: Tensor, tiles: int) -> Tensor:
    """Undo `assemble`: [M, C, H, W] to [M * tiles^2, C, h, w]."""
    count, channels, height, width = images.shape
    grid = images.reshape(count, channels, tiles, height // tiles, tiles, width // tiles)
    parts = grid.permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(-1, channels, height // tiles, width // tiles)


def expand(images: Tensor, tiles: int) -> Tensor:
    """Cut mosaics into tiles and enlarge each to the frame: [M, C, H, W] to [M * tiles^2, ...].

    Bilinear, without reading across a seam (IDC's decoder).
    """
    if tiles == 1:
        return images
    parts = split(images, tiles)
    return F.interpolate(parts, size=images.shape[-2:], mode="bilinear", align_corners=False)
