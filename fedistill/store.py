"""The artefact store: teachers and shares on disk, under a key that hashes what made them.

A run that needs what an earlier one has made reads it in place of making it again. The folder
is named by the environment variable FEDISTILL_STORE (`fedistill run --store DIR` sets it): it
belongs to a machine, not to an experiment. Files are written in one step and carry a hash of
their content, so that a reader finds a whole artefact or none; safetensors, never pickle.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

VARIABLE = "FEDISTILL_STORE"
_CODE = 1  # raise it when a stage makes other tensors from the same config

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artefact:
    """Tensors by name, and JSON notes about them."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Store:
    """A folder of artefacts; None: nothing is found and nothing is kept."""

    folder: Path | None

    @classmethod
    def from_environment(cls) -> "Store":
        """Return the store that FEDISTILL_STORE names."""
        name = os.environ.get(VARIABLE)
        return cls(Path(name) if name else None)

    def get(self, stage: str, key: Mapping[str, Any]) -> Artefact | None:
        """Return what was kept under a key; None if there is nothing, or not what was written."""
        path = self._path(stage, key)
        if path is None or not path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                written = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if digest(tensors) == written["sha256"]:
                return Artefact(tensors, json.loads(written["notes"]))
            reason = "its content does not match its hash"
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
        written = {
            "sha256": digest(tensors),
            "notes": json.dumps(artefact.notes),
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

    def _path(self, stage: str, key: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps([_CODE, torch.__version__, stage, key], sort_keys=True)
        return self.folder / f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors with their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
