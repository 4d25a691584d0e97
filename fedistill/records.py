"""What all messages share: how a request begins, and how values are read without trust.

Each function that reads raises a WireError for what is missing or of another kind.
"""

import json
import math
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, TypeGuard

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedistill import config_file
from fedistill.config import Config
from fedistill.errors import WireError
from fedistill.images import DataSpec

# What is measured is float32; and sums of such numbers over many clients stay finite in float64.
_LARGEST = torch.finfo(torch.float32).max
_RANGE = f" of {_LARGEST:.3g} at most"


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


def array(
    content: RecordDict,
    record: str,
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Return an array of an array record as a tensor of the type that is expected.

    Args:
        content: of a message.
        record: where the array is.
        name: of the array.
        dtype: what it must be.
        shape: what it must be; None: any.
    """
    arrays = content.array_records.get(record)
    if arrays is None or name not in arrays:
        raise WireError(f"the message holds no array '{name}'")
    return tensor(name, arrays[name], dtype, shape)


def tensor(
    name: str,
    array: Array,
    dtype: torch.dtype | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Read an array as a tensor.

    Its header is read first: of what is not as expected, or has other bytes than its header
    says, no number is copied. What Flower says of it beside must agree: replies are serialised
    again, and only what is true of some array always can be.

    Args:
        name: for a message.
        array: as it arrived.
        dtype: what it must be; None: any.
        shape: what it must be; None: any.
    """
    try:
        file = BytesIO(array.data)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # what numpy writes for plain numbers
            raise ValueError(f"its format has the version {version}")
        found, _, kind = np.lib.format.read_array_header_1_0(file)
        numbers = torch.from_numpy(np.empty(0, kind)).dtype
        if (dtype or numbers) != numbers or (found if shape is None else shape) != found:
            raise WireError(
                f"'{name}' is {numbers} {found}; expected {dtype or numbers} "
                f"{found if shape is None else shape}"
            )
        claimed, held = math.prod(found) * kind.itemsize, len(array.data) - file.tell()
        if claimed != held:
            raise ValueError(f"its header speaks of {claimed} bytes, and {held} follow")
        if (array.dtype, array.shape) != (str(kind), found):
            raise ValueError(f"it is said to be {array.dtype} {array.shape}: it is {kind} {found}")
        return torch.from_numpy(array.numpy())
    except WireError:
        raise
    except Exception as error:  # a made-up header makes numpy raise almost anything
        raise WireError(f"the array '{name}' cannot be read: {plain(str(error))}") from error


def held(content: RecordDict) -> int:
    """Return about how many bytes a message's content holds, without a copy of it."""
    arrays = (item for record in content.array_records.values() for item in record.items())
    others: list[Mapping[str, Any]] = [
        *content.metric_records.values(),
        *content.config_records.values(),
    ]
    values = (item for record in others for item in record.items())
    return (
        sum(len(key) for key in content)
        + sum(len(key) + len(it.data) + len(it.stype) + 8 * len(it.shape) for key, it in arrays)
        + sum(len(key) + _weight(value) for key, value in values)
    )


def _weight(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return sum(map(_weight, value)) if isinstance(value, list) else 8


def check_size(content: RecordDict, most: int) -> None:
    """Refuse a message that holds more than it can have reason to, before it is read."""
    found = held(content)
    if found > most:
        raise WireError(f"the message holds {found} bytes; expected {most} at most")


def check_names(what: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse missing and unknown names."""
    missing, odd = sorted({*wanted} - {*found}), sorted({*found} - {*wanted})
    if missing or odd:
        lists = [
            f"{name} {', '.join(plain(key, 60) for key in keys[:3])}"
            for name, keys in (("no", missing), ("unknown:", odd))
            if keys
        ]
        raise WireError(f"{what} has {' and '.join(lists)}")


def metric_record(content: RecordDict, name: str) -> MetricRecord:
    """Return the metric record of a name."""
    if name not in content.metric_records:
        raise WireError(f"the message holds no metric record '{name}'; it has {_keys(content)}")
    return content.metric_records[name]


def config_record(content: RecordDict, name: str) -> ConfigRecord:
    """Return the config record of a name."""
    if name not in content.config_records:
        raise WireError(f"the message holds no config record '{name}'; it has {_keys(content)}")
    return content.config_records[name]


def _keys(content: RecordDict) -> str:
    return plain(str(sorted(content)))


def integer(
    record: Mapping[str, Any], key: str, least: int | None = None, most: int | None = None
) -> int:
    """Read an integer, which may have to be `least` or more, and `most` or less."""
    value = record.get(key)
    if (
        not _is_integer(value)
        or (least is not None and value < least)
        or (most is not None and value > most)
    ):
        bounds = "" if least is None else f" of {least} or more"
        bounds += "" if most is None else f", {most} at most"
        raise WireError(f"'{key}' is {_shown(value)}; expected an integer{bounds}")
    return int(value)


def number(record: Mapping[str, Any], key: str) -> float:
    """Read a finite number, in the range of float32."""
    value = record.get(key)
    if not _is_number(value):
        raise WireError(f"'{key}' is {_shown(value)}; expected a finite number{_RANGE}")
    return float(value)


def integers(
    record: Mapping[str, Any], key: str, least: int | None = None, most: int | None = None
) -> list[int]:
    """Read a list of integers, which may have to be `least` or more, and `most` in number."""
    value = record.get(key)
    if not isinstance(value, list) or not all(map(_is_integer, value)):
        raise WireError(f"'{key}' is {_shown(value)}; expected a list of integers")
    if most is not None and len(value) > most:
        raise WireError(f"'{key}' holds {len(value)} numbers; expected {most} at most")
    if least is not None and min(value, default=least) < least:
        raise WireError(f"'{key}' holds {min(value)}; expected integers of {least} or more")
    return list(value)


def numbers(record: Mapping[str, Any], key: str) -> list[float]:
    """Read a list of finite numbers, in the range of float32."""
    value = record.get(key)
    if not isinstance(value, list) or not all(map(_is_number, value)):
        raise WireError(f"'{key}' is {_shown(value)}; expected a list of finite numbers{_RANGE}")
    return [float(item) for item in value]


def flag(record: Mapping[str, Any], key: str) -> bool:
    """Read true or false."""
    value = record.get(key)
    if not isinstance(value, bool):
        raise WireError(f"'{key}' is {_shown(value)}; expected true or false")
    return value


def text(record: Mapping[str, Any], key: str, most: int) -> str:
    """Read a text of `most` characters at most."""
    value = record.get(key)
    if not isinstance(value, str) or len(value) > most:
        raise WireError(f"'{key}' is {_shown(value)}; expected a text of {most} characters at most")
    return value


def texts(record: Mapping[str, Any], key: str, count: int, most: int) -> list[str]:
    """Read a list of `count` texts at most, each of `most` characters at most."""
    value = record.get(key)
    if (
        not isinstance(value, list)
        or len(value) > count
        or not all(isinstance(item, str) and len(item) <= most for item in value)
    ):
        raise WireError(
            f"'{key}' is {_shown(value)}; expected {count} texts at most, of {most} characters at "
            "most"
        )
    return list(value)


def plain(words: str, most: int = 300) -> str:
    """Return a text for a log or a terminal: one line, no control characters, not too long."""
    shown = "".join(sign if sign.isprintable() else " " for sign in words[: 2 * most])
    line = " ".join(shown.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_LARGEST <= value <= _LARGEST
    )


def _shown(value: Any) -> str:
    if isinstance(value, list) and (len(value) > 5 or not all(map(_is_number, value))):
        return f"a list of {len(value)} values"
    return plain(repr(value[:80] if isinstance(value, str | bytes) else value), 80)
