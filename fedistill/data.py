"""Load a data set as two uint8 tensors with labels, and what a method must know about it.

`sources.py` finds the images; they are decoded once and kept in `$FEDISTILL_CACHE` or
`~/.cache/fedistill`. A file there is keyed by where the images came from, is written in one
step and carries its own hash, so that a reader finds a whole file or none. A whitening is
fitted once and kept beside them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from fedistill import sources, whitening
from fedistill.config import DataConfig
from fedistill.cores import usable_cores
from fedistill.errors import DataError
from fedistill.images import DataSpec, ImageSet
from fedistill.seeding import generator
from fedistill.sources import HUB_NAMES, Pixels, Sample, some
from fedistill.store import Artefact, Store

if TYPE_CHECKING:
    from PIL.Image import Image

# Mean and standard deviation of the training images, as published code uses them.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_SHORT_NAMES = {hub_name: name for name, hub_name in HUB_NAMES.items()}
_NOT_MIRRORED = ("mnist", "digit", "svhn")
_CACHE_FORMAT = 1
# PIL modes; those with more than 8 bits a channel would be clipped in silence.
_GREY_MODES = {"1", "L"}
_COLOUR_MODES = {"LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """A data set, ready for use.

    Attributes:
        spec: what all its images have in common.
        train: the training split, or what the config keeps of it.
        test: the test split, or the held-out share of the training split.
        fingerprint: SHA-256 of the tensors and the class names.
    """

    spec: DataSpec
    train: ImageSet
    test: ImageSet
    fingerprint: str


@dataclass(frozen=True)
class _Decoded:
    class_names: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def tensors(self) -> dict[str, Tensor]:
        names = [field.name for field in fields(self) if field.name != "class_names"]
        return {name: getattr(self, name) for name in names}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for name, tensor in self.tensors().items():
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def load(config: DataConfig, seed: int = 0) -> Data:
    """Load the training split and the split to test on.

    The first call decodes every image, and fits a whitening if one is wanted; later ones read
    the cache.

    Args:
        config: which images. `validation` is held out before `fraction` is kept.
        seed: draws the held-out and the kept images, class by class.

    Raises:
        DataError: the data set is missing, broken, or not a set of square images with labels, or
            its images are too large to be whitened.
    """
    decoded = _decode_once(config)
    spec = _spec(config, decoded)
    train = ImageSet(decoded.train_images, decoded.train_labels)
    test = ImageSet(decoded.test_images, decoded.test_labels)
    if config.validation > 0:
        stream = generator(seed, "validation")
        held_out = _draw(train.labels, config.validation, stream, least=0, left=1)
        if not held_out.any():
            raise DataError(
                f"data.validation is {config.validation}, which is not one of the {len(train)} "
                "training images; raise it"
            )
        train, test = train.select(~held_out), train.select(held_out)
    if config.fraction < 1:
        stream = generator(seed, "fraction")
        train = train.select(_draw(train.labels, config.fraction, stream, least=1, left=0))
    used = _Decoded(spec.class_names, train.images, train.labels, test.images, test.labels)
    fingerprint = used.fingerprint()
    if config.zca:
        spec = replace(spec, zca=_whitening(train.images, fingerprint))
    return Data(spec, train, test, fingerprint)


def _whitening(images: Tensor, fingerprint: str) -> whitening.Whitening:
    """Fit a whitening to the training split, or read what was fitted to it before."""
    size = images[0].numel()
    if size > whitening.LARGEST:
        raise DataError(
            f"data.zca is true and an image holds {size} numbers, so that the whitening would take "
            f"{4e-9 * size**2:.1f} GB; accepted: up to {whitening.LARGEST} numbers; set data.size, "
            "or data.zca to false"
        )

    def fit() -> Artefact:
        _log.info("fitting a whitening to %s images", len(images))
        found = whitening.fit(images)
        return Artefact({"mean": found.mean, "matrix": found.matrix}, {})

    key = {"data": fingerprint, "eps": whitening.EPS}
    return whitening.Whitening(**Store(_cache_folder()).recall("whitening", key, fit).tensors)


def _draw(
    labels: Tensor, share: float, stream: torch.Generator, *, least: int, left: int
) -> Tensor:
    """Draw a share of every class: at least `least` images, and `left` not drawn; bool [M]."""
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        count = min(max(round(share * len(members)), least), len(members) - left)
        drawn[members[torch.randperm(len(members), generator=stream)[:count]]] = True
    return drawn


def _spec(config: DataConfig, decoded: _Decoded) -> DataSpec:
    channels, size = decoded.train_images.shape[1:3]
    folder = None if config.name == "digits" else sources.local_folder(config.name)
    place = folder.name if folder else config.name.split("/")[-1]
    name = _SHORT_NAMES.get(config.name, place)
    known = _STATISTICS.get(name) if folder is None and name in HUB_NAMES else None
    mean, std = known or _statistics(decoded.train_images)
    mirrored = channels == 3 and not any(word in name.lower() for word in _NOT_MIRRORED)
    return DataSpec(
        name=name,
        class_names=decoded.class_names,
        channels=channels,
        size=size,
        mean=mean,
        std=std,
        flip=mirrored if config.flip is None else config.flip,
    )


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in [0, 1], from 256-bin histograms."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        std = (share * (levels - mean).square()).sum().sqrt()
        means.append(round(float(mean), 4))
        # A channel that is the same everywhere must not divide by zero.
        stds.append(max(round(float(std), 4), 1e-3))
    return tuple(means), tuple(stds)


def _decode_once(config: DataConfig) -> _Decoded:
    if config.name == "digits":
        return _decode(config)
    path = _cache_path(config)
    decoded = _read_cache(path)
    if decoded is None:
        decoded = _decode(config)
        _write_cache(path, decoded)
    return decoded


def _cache_path(config: DataConfig) -> Path:
    """Name the cache file after everything that decides what is in it."""
    folder = sources.local_folder(config.name)
    files: list[tuple[str, int, int]] = []
    if folder is not None:
        found = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
        files = [(str(p.relative_to(folder)), s.st_size, s.st_mtime_ns) for p, s in found]
    place = str(folder) if folder else HUB_NAMES.get(config.name, config.name)
    key = json.dumps([_CACHE_FORMAT, folder is None, place, files, config.size])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return _cache_folder() / f"{Path(place).name}-{digest}.safetensors"


def _cache_folder() -> Path:
    return Path(os.environ.get("FEDISTILL_CACHE") or Path.home() / ".cache" / "fedistill")


def _read_cache(path: Path) -> _Decoded | None:
    """Read a cache file; None if there is none, or if it is not what was written."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        decoded = _Decoded(tuple(json.loads(notes["class_names"])), **tensors)
        if decoded.fingerprint() == notes["fingerprint"]:
            return decoded
        reason = "its content does not match its hash"
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = repr(error)
    _log.warning("%s is damaged (%s); the images are decoded again", path, reason)
    return None


def _write_cache(path: Path, decoded: _Decoded) -> None:
    """Write a cache file in one step: another process sees the whole file or none."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    notes = {
        "class_names": json.dumps(decoded.class_names),
        "fingerprint": decoded.fingerprint(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(decoded.tensors(), unfinished, metadata=notes)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        _log.warning(
            "The decoded images cannot be kept in %s (%s), so that every run decodes them "
            "again; set FEDISTILL_CACHE to a folder that can be written",
            path.parent,
            error,
        )
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _decode(config: DataConfig) -> _Decoded:
    """Decode both splits, give them the same channels, and turn labels into numbers."""
    source = sources.find(config.name)
    sizes: dict[tuple[int, int], str] = {}
    train, train_found = _decode_split(source.train, config.size, sizes)
    test, test_found = _decode_split(source.test, config.size, sizes)
    for split, found in (("training", train_found), ("test", test_found)):
        if not found:
            raise DataError(f"{source.place}: the {split} split is empty; add images to it")
    names = source.class_names or sources.names_of(train_found)
    labels = sources.numbers(train_found, names, f"{source.place}: the training split")
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{source.place}: no training image of class {some(empty)}; every class needs one; "
            "add images or remove the class"
        )
    channels = 3 if any(images.shape[1] == 3 for images in (*train, *test)) else 1
    return _Decoded(
        names,
        _join(train, channels),
        labels,
        _join(test, channels),
        sources.numbers(test_found, names, f"{source.place}: the test split"),
    )


def _decode_split(
    batches: Iterable[list[Sample]], size: int | None, sizes: dict[tuple[int, int], str]
) -> tuple[list[Tensor], list[Any]]:
    """Decode a split; adds to `sizes` an example of every image size that was met.

    Returns:
        uint8 [B, 1 or 3, H, W] of each batch, and the labels as they were found.
    """
    images: list[Tensor] = []
    labels: list[Any] = []
    with ThreadPoolExecutor(min(4, usable_cores())) as pool:
        for batch in batches:
            # 64 images a task: one image of 32 x 32 is decoded faster than it is queued.
            tasks = [batch[start : start + 64] for start in range(0, len(batch), 64)]
            done = pool.map(lambda task: [_pixels(sample, size) for sample in task], tasks)
            pixels = [array for task in done for array in task]
            for sample, array in zip(batch, pixels, strict=True):
                sizes.setdefault((array.shape[0], array.shape[1]), sample.where)
            _check_sizes(sizes)
            colour = any(array.ndim == 3 for array in pixels)
            images.append(_stack(pixels, 3 if colour else 1))
            labels += [sample.label for sample in batch]
    return images, labels


def _check_sizes(sizes: dict[tuple[int, int], str]) -> None:
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        found = [f"{width} x {height} ({where})" for (height, width), where in sizes.items()]
        raise DataError(
            f"images have sizes {some(found, 2)}; accepted: one square size for all; set "
            "data.size, which resizes the shorter side and crops the centre"
        )


def _pixels(sample: Sample, size: int | None) -> Pixels:
    """Decode one image to uint8 [H, W] if it is grey, [H, W, 3] if not."""
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
        raise DataError(
            f"{sample.where} is not an image that can be read ({error}); mend or remove it"
        ) from error


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


def _join(batches: list[Tensor], channels: int) -> Tensor:
    return torch.cat([batch.expand(-1, channels, -1, -1) for batch in batches]).contiguous()
