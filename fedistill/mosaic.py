"""Mosaics: tiles x tiles small images in the place of one (IDC's multi-formation, RDED, LIC)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedistill.errors import ConfigError
from fedistill.images import DataSpec


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

    Bilinear, without reading across a seam (IDC's decoder). Written as two matrices: the backward
    pass of `interpolate` is not deterministic on a GPU.
    """
    return images if tiles == 1 else _enlarge(split(images, tiles), images.shape[-1])


def expand_some(images: Tensor, tiles: int, chosen: Tensor) -> Tensor:
    """Return some of the tiles that `expand` would: number i * tiles^2 + t is tile t of image i.

    Args:
        images: [M, C, H, W].
        tiles: a side.
        chosen: int64 [B].
    """
    parts = split(images, tiles)[chosen.to(images.device)]
    return parts if tiles == 1 else _enlarge(parts, images.shape[-1])


def _enlarge(parts: Tensor, size: int) -> Tensor:
    each_pixel = torch.eye(parts.shape[-1], device=parts.device, dtype=parts.dtype)
    weights = F.interpolate(each_pixel[None], size=size, mode="linear", align_corners=False)[0]
    return weights.T @ parts @ weights


def strided(ranked: Tensor, count: int) -> Tensor:
    """Deal ranked things to `count` mosaics: number j gets ranks j, j + count, ... (RDED).

    No mosaic then holds only the best.

    Args:
        ranked: best first, [count * n].
        count: of mosaics.

    Returns:
        Mosaic by mosaic, [count * n].
    """
    return ranked.view(-1, count).T.reshape(-1)


def require_unwhitened(tiles: int, spec: DataSpec, key: str) -> None:
    """Refuse mosaics of pixels where networks see whitened images.

    A tile is cut out of the whitened mosaic and enlarged: no network has been shown the like, and
    it is not what the method has looked at.

    Args:
        tiles: a side; 1 is no mosaic.
        spec: of the data set.
        key: of the config that says `tiles`.

    Raises:
        ConfigError: the images are whitened.
    """
    if tiles > 1 and spec.zca is not None:
        raise ConfigError(
            f"data.zca is true and {key} is {tiles}: tiles of a whitened mosaic are no whitened "
            f"images; accepted: data.zca false, or {key} 1"
        )


def require_tiles(tiles: int, size: int, key: str) -> None:
    """Refuse tiles that do not fill the frame.

    Args:
        tiles: a side.
        size: of the frame in pixels.
        key: of the config that says `tiles`.

    Raises:
        ConfigError: `tiles` does not divide `size`.
    """
    if size % tiles:
        accepted = [n for n in range(1, size // 2 + 1) if size % n == 0]
        raise ConfigError(
            f"{key} is {tiles}, and images of {size} pixels do not divide into {tiles} x {tiles} "
            f"tiles; accepted: {accepted}"
        )
