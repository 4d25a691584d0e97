"""Decode images of any kind to uint8 tensors of one size."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedistill.cores import usable_cores
from fedistill.errors import DataError
from fedistill.sources import Pixels, Sample, some

if TYPE_CHECKING:
    from PIL.Image import Image

# PIL modes; those with more than 8 bits a channel would be clipped in silence.
_GREY_MODES = {"1", "L"}
_COLOUR_MODES = {"LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"}


def decode(
    batches: Iterable[list[Sample]], size: int | None, sizes: dict[tuple[int, int], str]
) -> tuple[list[Tensor], list[Any]]:
    """Decode a split; adds to `sizes` an example of every image size that was met.

    Returns:
        uint8 [B, 1 or 3, H, W] of each batch, and the labels as they were found.
    """
    images: list[Tensor] = []
    labels: list[Any] = []
    broken: list[tuple[Sample, str]] = []
    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        for batch in batches:
            # 64 images a task: one image of 32 x 32 is decoded faster than it is queued.
            tasks = [batch[start : start + 64] for start in range(0, len(batch), 64)]
            done = pool.map(lambda task: [_pixels(sample, size) for sample in task], tasks)
            found = [it for task in done for it in task]
            pairs = zip(batch, found, strict=True)
            broken += [(sample, why) for sample, why in pairs if isinstance(why, str)]
            if broken:  # only who else is
                continue
            pixels = [it for it in found if not isinstance(it, str)]
            for sample, array in zip(batch, pixels, strict=True):
                sizes.setdefault((array.shape[0], array.shape[1]), sample.where)
            _check_sizes(sizes)
            colour = any(array.ndim == 3 for array in pixels)
            images.append(_stack(pixels, 3 if colour else 1))
            labels += [sample.label for sample in batch]
    if broken:
        raise _unreadable(broken)
    return images, labels


def _unreadable(broken: list[tuple[Sample, str]]) -> DataError:
    """Name the images that cannot be read, and for others their classes alone."""
    counts = Counter(str(sample.label) for sample, _ in broken)
    classes = [f"{count} of class '{name}'" for name, count in sorted(counts.items())]
    told = f"it holds images that cannot be read: {some(classes)}; mend or remove them"
    (first, why), *others = broken
    more = f", and {len(others)} more are not: {some(it.where for it, _ in others)}"
    return DataError(
        f"{first.where} is not an image that can be read ({why}){more if others else ''}; mend or "
        f"remove {'them' if others else 'it'}",
        told,
    )


def _check_sizes(sizes: dict[tuple[int, int], str]) -> None:
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        found = [f"{width} x {height} ({where})" for (height, width), where in sizes.items()]
        raise DataError(
            f"images have sizes {some(found, 2)}; accepted: one square size for all; set "
            "data.size, which resizes the shorter side and crops the centre"
        )


def _pixels(sample: Sample, size: int | None) -> Pixels | str:
    """Decode one image to uint8 [H, W] if it is grey, [H, W, 3] if not; or say why it cannot be."""
    from PIL import Image, ImageOps

    if isinstance(sample.data, np.ndarray):
        return np.asarray(_fit(Image.fromarray(sample.data), size))
    try:
        file = BytesIO(sample.data) if isinstance(sample.data, bytes) else sample.data
        with Image.open(file) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode not in _GREY_MODES | _COLOUR_MODES:
                raise ValueError(f"its mode is {image.mode}; accepted: 8 bits a channel")
            mode = "L" if image.mode in _GREY_MODES else "RGB"
            return np.asarray(_fit(image if image.mode == mode else image.convert(mode), size))
    # A broken PNG is a SyntaxError, a huge image a DecompressionBombError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)


def _fit(image: "Image", size: int | None) -> "Image":
    """Resize the shorter side to `size` pixels, antialiased, and crop the centre."""
    from PIL.Image import Resampling

    if size is None or image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def _stack(pixels: list[Pixels], channels: int) -> Tensor:
    """Stack decoded images to uint8 [B, channels, H, W]."""
    shape = (*pixels[0].shape[:2], channels)
    same = [np.broadcast_to(p if p.ndim == 3 else p[..., None], shape) for p in pixels]
    return torch.from_numpy(np.stack(same)).permute(0, 3, 1, 2)


def join(batches: list[Tensor], channels: int) -> Tensor:
    """Unite batches of grey and coloured images to uint8 [M, channels, H, W]."""
    return torch.cat([batch.expand(-1, channels, -1, -1) for batch in batches]).contiguous()
