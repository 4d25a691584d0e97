"""Weights and buffers of a network as a Flower record, and read back without trust.

What a state of a network looks like, its names, types and shapes, is known before one arrives:
no number of another state is read.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedistill import records
from fedistill.config import ModelConfig
from fedistill.errors import WireError
from fedistill.images import DataSpec
from fedistill.models.build import build

Form = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_VARIANCE = "running_var"  # how torch's BatchNorm names a buffer that must not be negative
_OVERHEAD = 1024  # bytes of an array beside its numbers: a name, a header of 128 bytes


def form(model: ModelConfig, spec: DataSpec) -> Form:
    """Return type and shape of each tensor of a network's state; no memory is taken for them.

    Raises:
        ModelError: there is no such network for the images.
    """
    return _form(model, replace(spec, zca=None))


@lru_cache(maxsize=32)
def _form(model: ModelConfig, spec: DataSpec) -> Form:
    with torch.device("meta"):
        network = build(model, spec, 0, "form")
    return form_of(network.state_dict())


def form_of(state: Mapping[str, Tensor]) -> Form:
    """Return type and shape of each tensor of a state."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def largest(shape: Form) -> int:
    """Return the most bytes that a record of such a state can have."""
    return sum(_OVERHEAD + dtype.itemsize * math.prod(size) for dtype, size in shape.values())


def encode(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Turn weights and buffers into a record, as Flower's strategies average them."""
    return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in state.items()})


def decode(record: ArrayRecord, expected: Form, what: str) -> dict[str, Tensor]:
    """Read a state and check that it is one of a network.

    Args:
        record: as it arrived.
        expected: of the network.
        what: to call it in a message.

    Raises:
        WireError: it is another network's, or would make this one answer with NaN.
    """
    records.check_names(what, record, expected)
    found = {}
    for name, (dtype, shape) in expected.items():
        tensor = records.tensor(name, record[name], dtype, shape)
        if not bool(tensor.isfinite().all()):
            raise WireError(f"{what}: '{name}' holds values that are not finite")
        if name.endswith(_VARIANCE) and bool((tensor < 0).any()):
            raise WireError(f"{what}: '{name}' holds negative values; it is a variance")
        found[name] = tensor
    return found
