"""Decoded images, kept in `$FEDISTILL_CACHE` or `~/.cache/fedistill`.

A file there is keyed by where the images came from, is written in one step and carries its own
hash, so that a reader finds a whole file or none.
"""

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from fedistill import sources
from fedistill.images import ImageSet
from fedistill.sources import HUB_NAMES

_FORMAT = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The images of a data set; a split that it does not have holds none.

    Attributes:
        class_names: the order is the meaning of the labels.
        train_images: uint8 [M, C, H, W].
        train_labels: int64 [M].
        test_images: of the same channels and size.
        test_labels: int64.
    """

    class_names: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def train(self) -> ImageSet:
        """The training split."""
        return ImageSet(self.train_images, self.train_labels)

    @property
    def test(self) -> ImageSet:
        """The test split."""
        return ImageSet(self.test_images, self.test_labels)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        names = [field.name for field in fields(self) if field.name != "class_names"]
        return {name: getattr(self, name) for name in names}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the tensors and the class names."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for name, tensor in self.tensors().items():
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def path_of(name: str, size: int | None) -> Path:
    """Name the file after everything that decides what is in it.

    Args:
        name: of the data set.
        size: that its images are resized to.
    """
    place = sources.local_folder(name)
    files: list[tuple[str, int, int]] = []
    if place is not None:
        found = ((path, path.stat()) for path in sorted(place.rglob("*")) if path.is_file())
        files = [(str(p.relative_to(place)), s.st_size, s.st_mtime_ns) for p, s in found]
    where = str(place) if place else HUB_NAMES.get(name, name)
    key = json.dumps([_FORMAT, place is not None, where, files, size])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return folder() / f"{Path(where).name}-{digest}.safetensors"


def folder() -> Path:
    """Return the folder of the cache."""
    return Path(os.environ.get("FEDISTILL_CACHE") or Path.home() / ".cache" / "fedistill")


def read(path: Path) -> Splits | None:
    """Read a cache file; None if there is none, or if it is not what was written."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        splits = Splits(tuple(json.loads(notes["class_names"])), **tensors)
        if splits.fingerprint() == notes["fingerprint"]:
            return splits
        reason = "its content does not match its hash"
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = repr(error)
    _log.warning("%s is damaged (%s); the images are decoded again", path, reason)
    return None


def write(path: Path, splits: Splits) -> None:
    """Write a cache file in one step: another process sees the whole file or none."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    notes = {
        "class_names": json.dumps(splits.class_names),
        "fingerprint": splits.fingerprint(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(splits.tensors(), unfinished, metadata=notes)
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
