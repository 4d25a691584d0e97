"""What all messages share: how a request begins, and how values are read without trust.

Each function that reads raises a WireError for what is missing or of another kind.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedistill import config_file
from fedistill.config import Config
from fedistill.errors import WireError
from fedistill.images import DataSpec


def request(config: Config, spec: DataSpec, partition_id: int) -> RecordDict:
    """Make the beginning of every request: the experiment, the data set, and whom it is for."""
    record = ConfigRecord(
        {
            "config-yaml": config_file.dump(config),
            "spec-json": json.dumps(spec.as_dict()),
            "partition-id": partition_id,
        }
    )
    arrays = {name: Array(tensor.numpy()) for name, tensor in spec.tensors().items()}
    return RecordDict({"request": record, **({"spec": ArrayRecord(arrays)} if arrays else {})})


def read_request(content: RecordDict) -> tuple[Config, DataSpec, int]:
    """Read what `request` wrote."""
    record = config_record(content, "request")
    for key in ("config-yaml", "spec-json"):
        if key not in record:
            raise WireError(f"the request holds no '{key}'; it has {sorted(record)}")
    config = config_file.loads(str(record["config-yaml"]), origin="the server's config")
    arrays = content.array_records.get("spec", ArrayRecord())
    tensors = {name: tensor(name, array) for name, array in arrays.items()}
    try:
        spec = DataSpec.from_dict(json.loads(str(record["spec-json"])), tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WireError(f"the request holds no spec that can be read: {error}") from error
    return config, spec, integer(record, "partition-id")


def array(content: RecordDict, record: str, name: str, dtype: torch.dtype) -> Tensor:
    """Return an array of an array record as a tensor of the type that is expected."""
    arrays = content.array_records.get(record)
    if arrays is None or name not in arrays:
        raise WireError(f"the message holds no array '{name}'")
    found = tensor(name, arrays[name])
    if found.dtype != dtype:
        raise WireError(f"'{name}' is {found.dtype}; expected {dtype}")
    return found


def tensor(name: str, array: Array) -> Tensor:
    """Read an array as a tensor of its own type."""
    try:
        return torch.from_numpy(array.numpy())
    # A header may claim more numbers than there is memory for.
    except (EOFError, MemoryError, OSError, TypeError, ValueError) as error:
        raise WireError(f"the array '{name}' cannot be read: {error}") from error


def metric_record(content: RecordDict, name: str) -> MetricRecord:
    """Return the metric record of a name."""
    if name not in content.metric_records:
        raise WireError(f"the message holds no metric record '{name}'; it has {sorted(content)}")
    return content.metric_records[name]


def config_record(content: RecordDict, name: str) -> ConfigRecord:
    """Return the config record of a name."""
    if name not in content.config_records:
        raise WireError(f"the message holds no config record '{name}'; it has {sorted(content)}")
    return content.config_records[name]


def integer(record: Mapping[str, Any], key: str) -> int:
    """Read an integer."""
    value = record.get(key)
    if not isinstance(value, int):
        raise WireError(f"'{key}' is {value!r}; expected an integer")
    return value


def number(record: Mapping[str, Any], key: str) -> float:
    """Read a number."""
    value = record.get(key)
    if not isinstance(value, int | float):
        raise WireError(f"'{key}' is {value!r}; expected a number")
    return float(value)


def integers(record: Mapping[str, Any], key: str) -> list[int]:
    """Read a list of integers."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise WireError(f"'{key}' is {value!r}; expected a list of integers")
    return list(value)
