"""The artefact store: teachers, shares and students, under a key that hashes what made them.

A run that needs what an earlier one has made reads it in place of making it again. The folder
is named by the environment variable FEDISTILL_STORE (`fedistill run --store DIR` sets it): it
belongs to a machine, not to an experiment, so it enters no config and no hash. Files are written
in one step and carry a hash of their content, so that a reader finds a whole artefact or none;
safetensors, never pickle.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from fedistill import warned
from fedistill.errors import OutputError

VARIABLE = "FEDISTILL_STORE"
_REMEDY = f"choose another --store, or unset {VARIABLE}"

# The code that a stage runs: an artefact of other code is another artefact.
_TRAINING = ("crops", "images", "models/*", "seeding", "teacher", "training", "whitening")
_METHODS = (
    "augmentation", "clusters", "condenser", "distillers/*", "guidance", "losses/*",
    "matching_options", "mosaic", "reference",
)  # fmt: skip
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "teacher": _TRAINING,
    "share": (*_TRAINING, *_METHODS),
    "batch": (*_TRAINING, *_METHODS),
    "student": (*_TRAINING, "losses/soft_labels", "sets", "student"),
    "whitening": ("whitening",),
}

# Networks are of the one; clusters and coresets of the other.
_LIBRARIES = ("torchvision", "scikit-learn")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artefact:
    """Tensors by name, and JSON notes about them; `found` in a store, or just made."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]
    found: bool = False


@dataclass(frozen=True)
class Store:
    """A folder of artefacts; None: nothing is found and nothing is kept."""

    folder: Path | None

    @classmethod
    def from_environment(cls) -> "Store":
        """Return the store that FEDISTILL_STORE names."""
        name = os.environ.get(VARIABLE)
        return cls(Path(name) if name else None)

    def opened(self) -> "Store":
        """Make the folder, and return the store by its absolute path.

        Raises:
            OutputError: there can be no such folder, or nothing can be written there.
        """
        self.require_folder()
        if self.folder is None:
            return self
        folder = self.folder.absolute()
        try:
            Store(folder).probe()
        except OSError as error:
            raise OutputError(
                f"the store {folder} cannot be written: {error}; {_REMEDY}"
            ) from error
        return Store(folder)

    def require_folder(self) -> None:
        """Refuse a file, without making anything.

        Raises:
            OutputError: there is a file of that name.
        """
        if self.folder is not None and self.folder.is_file():
            raise OutputError(f"the store {self.folder.absolute()} is a file; {_REMEDY}")

    def probe(self) -> None:
        """Make the folder, and write a file there that does not stay.

        Raises:
            OSError: that cannot be done.
        """
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder, buffering=0) as file:
                file.write(b"probe")

    def recall(self, stage: str, key: Mapping[str, Any], make: Callable[[], Artefact]) -> Artefact:
        """Return what is kept under a key; else make it and keep it.

        The note `seconds` says how long it took to make, whenever that was, and `warnings` what
        was warned of meanwhile: whoever reads the artefact is warned of that too.
        """
        kept = self.get(stage, key)
        if kept is not None:
            for text in kept.notes["warnings"]:
                _log.warning("%s", text)
            return kept
        started = time.perf_counter()
        with warned.collected() as warnings:
            made = make()
        seconds = time.perf_counter() - started
        made = replace(made, notes={**made.notes, "seconds": seconds, "warnings": warnings})
        self.put(stage, key, made)
        return made

    def get(self, stage: str, key: Mapping[str, Any]) -> Artefact | None:
        """Return what was kept under a key; None if there is nothing, or not what was written."""
        path = self._path(stage, key)
        if path is None:
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                written = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _checksum(tensors, written["notes"]) == written["sha256"]:
                return Artefact(tensors, json.loads(written["notes"]), found=True)
            reason = "its content does not match its hash"
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = repr(error)
        _log.warning("%s is damaged (%s); it is made again", path, reason)
        return None

    def put(self, stage: str, key: Mapping[str, Any], artefact: Artefact) -> None:
        """Keep an artefact; a store that cannot be written is no reason to fail."""
        path = self._path(stage, key)
        if path is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
        tensors = {k: v.cpu().contiguous().clone() for k, v in artefact.tensors.items()}
        notes = json.dumps(artefact.notes)
        written = {
            "sha256": _checksum(tensors, notes),
            "notes": notes,
            "key": json.dumps(key, sort_keys=True),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, unfinished, metadata=written)
            os.replace(unfinished, path)
        except (OSError, SafetensorError) as error:
            _log.warning("%s cannot be written (%s); nothing is kept", path.parent, error)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def name(self, stage: str, key: Mapping[str, Any]) -> str:
        """Return what an artefact is called: who has the same key, and runs the same code."""
        versions = [torch.__version__, *_versions()]
        text = json.dumps([_code(stage), versions, stage, key], sort_keys=True)
        return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _path(self, stage: str, key: Mapping[str, Any]) -> Path | None:
        return self.folder and self.folder / f"{self.name(stage, key)}.safetensors"


@cache
def _code(stage: str) -> str:
    """Hash the source files of a stage."""
    package = Path(__file__).parent
    found = hashlib.sha256()
    for pattern in _SOURCES[stage]:
        for path in sorted(package.glob(f"{pattern}.py")):
            found.update(path.relative_to(package).as_posix().encode() + b"\0")
            found.update(path.read_bytes())
    return found.hexdigest()


@cache
def _versions() -> list[str]:
    """Return the versions of libraries beside torch on which artefacts depend.

    Read from what is installed, since importing them takes seconds.
    """
    found = []
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):  # not every stage needs all of them
            found.append(f"{name} {version(name)}")
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors with their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _checksum(tensors: Mapping[str, Tensor], notes: str) -> str:
    return hashlib.sha256(f"{digest(tensors)} {notes}".encode()).hexdigest()
