"""What travels between server and clients, as Flower records.

Keys are kebab-case, as Flower's own. Nested values travel as one YAML or JSON string, tensors
as arrays of their own type. Decoding checks everything that the code after it relies on, since
what comes from the network is not to be trusted.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from torch import Tensor

from fedistill import records
from fedistill.config import Config
from fedistill.errors import WireError
from fedistill.images import DataSpec
from fedistill.shares import Share

DESCRIBE = "query.describe"
DISTILL = "train.distill"
_STAGES = ("squeeze", "recover")  # of a client
_STEPS, _VALUES = "-curve-steps", "-curve-values"  # what the two lists of a curve end with
_OTHER = "other:"  # what the names of a method's own curves begin with
_CURVE_NAME = re.compile(r"[a-z]+/[\w-]{1,50}")
_CURVES, _CURVE_LENGTH = 100, 10_000  # most of a share, and the points of one
_WARNINGS, _WARNING_LENGTH = 10, 400  # most of a share, and their length


@dataclass(frozen=True)
class Description:
    """What a client says about itself.

    Attributes:
        partition_id: of the client.
        histogram: images of each class in its shard.
        machine: versions and hardware, for the record.
    """

    partition_id: int
    histogram: list[int]
    machine: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """What the server asks of a client: `counts` images of each class, beside those `made`.

    Both are as in `planning.requests`: one row for all sets, or one for each.
    """

    config: Config
    spec: DataSpec
    partition_id: int
    counts: list[int]
    attempt: int = 0
    made: tuple[int, ...] = ()
    teachers: tuple[Mapping[str, Tensor], ...] = ()


def size(content: RecordDict) -> int:
    """Return the bytes of a message's content as Flower serialises it."""
    return int(recorddict_to_proto(content).ByteSize())


def encode_describe_request(config: Config, spec: DataSpec, partition_id: int) -> RecordDict:
    """Ask a client to describe the shard with this partition id; that takes no whitening."""
    return records.request(config, replace(spec, zca=None), partition_id)


def decode_describe_request(content: RecordDict) -> tuple[Config, DataSpec, int]:
    """Read what `encode_describe_request` wrote."""
    return records.read_request(content)


def encode_description(description: Description) -> RecordDict:
    """Answer `query.describe`."""
    return RecordDict(
        {
            "metrics": MetricRecord(
                {
                    "partition-id": description.partition_id,
                    "histogram": description.histogram,
                    "num-examples": sum(description.histogram),
                }
            ),
            "machine": ConfigRecord(dict(description.machine)),
        }
    )


def decode_description(content: RecordDict, num_classes: int) -> Description:
    """Read a description and check it.

    Raises:
        WireError: it does not follow the contract.
    """
    metrics = records.metric_record(content, "metrics")
    histogram = records.integers(metrics, "histogram")
    if len(histogram) != num_classes or min(histogram) < 0:
        raise WireError(f"histogram is {histogram}; expected {num_classes} counts")
    machine = {str(k): str(v) for k, v in records.config_record(content, "machine").items()}
    return Description(records.integer(metrics, "partition-id"), histogram, machine)


def encode_distill_request(request: DistillRequest) -> RecordDict:
    """Ask a client for its share.

    A whitening travels with the spec: a client sees its own shard alone, and could not fit it.
    """
    content = records.request(request.config, request.spec, request.partition_id)
    record = content.config_records["request"]
    record["counts"] = request.counts
    record["attempt"] = request.attempt
    record["made"] = list(request.made)
    content.update(_encode_teachers(request.teachers))
    return content


def decode_distill_request(content: RecordDict) -> DistillRequest:
    """Read what `encode_distill_request` wrote.

    Raises:
        WireError: it does not follow the contract.
    """
    config, spec, partition_id = records.read_request(content)
    record = records.config_record(content, "request")
    return DistillRequest(
        config=config,
        spec=spec,
        partition_id=partition_id,
        counts=records.integers(record, "counts"),
        attempt=records.integer(record, "attempt"),
        made=tuple(records.integers(record, "made")),
        teachers=_decode_teachers(content),
    )


def encode_share(share: Share) -> RecordDict:
    """Answer `train.distill`."""
    metrics: dict[str, Any] = {
        "partition-id": share.partition_id,
        "num-examples": len(share.images),
        "counts": list(share.counts),
    }
    for stage, value in share.seconds.items():
        metrics[f"seconds-{stage}"] = float(value)
    for stage in _STAGES:  # always there: the bytes of a resumed run are those of one that was not
        metrics[f"from-store-{stage}"] = int(stage in share.from_store)
    own = {"teacher": share.teacher_curve, "recover": share.recover_curve}
    others = {f"{_OTHER}{name}": curve for name, curve in share.curves.items()}
    for name, curve in {**own, **others}.items():
        metrics[f"{name}{_STEPS}"] = [step for step, _ in curve]
        metrics[f"{name}{_VALUES}"] = [float(value) for _, value in curve]
    return RecordDict(
        {
            "set": ArrayRecord({"images": Array(share.images.numpy())}),
            "metrics": MetricRecord(metrics),
            "notes": ConfigRecord({"warnings": list(share.warnings)}),
            **_encode_teachers(share.teachers),
        }
    )


def decode_share(content: RecordDict, request: DistillRequest) -> Share:
    """Read a share and check that it is what was asked for.

    Raises:
        WireError: it is not.
    """
    metrics = records.metric_record(content, "metrics")
    partition_id, counts = (
        records.integer(metrics, "partition-id"),
        records.integers(metrics, "counts"),
    )
    if partition_id != request.partition_id or counts != request.counts:
        raise WireError(
            f"the share is of partition {partition_id} with {counts} images per class; "
            f"asked for partition {request.partition_id} with {request.counts}"
        )
    spec = request.spec
    shape = (sum(counts), spec.channels, spec.size, spec.size)
    images = records.array(content, "set", "images", torch.uint8)
    if tuple(images.shape) != shape:
        raise WireError(f"images are {tuple(images.shape)}; expected {shape}")
    teachers = _decode_teachers(content)
    if request.config.relabel.at == "clients" and teachers:
        raise WireError("the share holds a teacher, which was to stay at home")
    if request.config.relabel.at == "server" and not teachers:
        raise WireError("the share holds no teacher")
    for state in teachers:
        for name, tensor in state.items():
            if not bool(tensor.float().isfinite().all()):  # in the precision of networks
                raise WireError(f"the teacher's '{name}' holds values that are not finite")
    return Share(
        partition_id=partition_id,
        images=images,
        counts=tuple(counts),
        teachers=teachers,
        teacher_curve=_curve(metrics, "teacher"),
        recover_curve=_curve(metrics, "recover"),
        curves={name.removeprefix(_OTHER): _curve(metrics, name) for name in _others(metrics)},
        seconds={stage: records.number(metrics, f"seconds-{stage}") for stage in _STAGES},
        from_store=tuple(stage for stage in _STAGES if metrics.get(f"from-store-{stage}")),
        warnings=_warnings(records.config_record(content, "notes")),
    )


def _encode_teachers(teachers: Sequence[Mapping[str, Tensor]]) -> dict[str, ArrayRecord]:
    return {
        f"teacher-{number}": ArrayRecord({key: Array(value) for key, value in state.items()})
        for number, state in enumerate(teachers)
    }


def _decode_teachers(content: RecordDict) -> tuple[Mapping[str, Tensor], ...]:
    keys = [key for key in content.array_records if key.startswith("teacher-")]
    keys.sort(key=lambda key: (len(key), key))  # 10 comes after 9
    return tuple(
        {name: records.tensor(name, array) for name, array in content.array_records[key].items()}
        for key in keys
    )


def _warnings(record: Mapping[str, Any]) -> tuple[str, ...]:
    value = record.get("warnings")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise WireError(f"'warnings' is {value!r}; expected a list of texts")
    return tuple(textwrap.shorten(item, _WARNING_LENGTH) for item in value[:_WARNINGS])


def _curve(record: Mapping[str, Any], name: str) -> list[tuple[int, float]]:
    steps = records.integers(record, f"{name}{_STEPS}")
    values = record.get(f"{name}{_VALUES}")
    if not isinstance(values, list) or len(values) != len(steps):
        found = f"{len(values)} values" if isinstance(values, list) else "no values"
        raise WireError(f"the curve '{name}' has {len(steps)} steps and {found}")
    if len(steps) > _CURVE_LENGTH:
        raise WireError(f"the curve '{name}' has {len(steps)} points; at most {_CURVE_LENGTH}")
    return [(step, float(value)) for step, value in zip(steps, values, strict=True)]


def _others(record: Mapping[str, Any]) -> list[str]:
    found = [key for key in record if key.startswith(_OTHER) and key.endswith(_STEPS)]
    if len(found) > _CURVES:
        raise WireError(f"the share holds {len(found)} curves; at most {_CURVES}")
    names = sorted(key.removesuffix(_STEPS) for key in found)
    for name in names:
        if not _CURVE_NAME.fullmatch(name.removeprefix(_OTHER)):
            raise WireError(f"{name[:80]!r} is no name of a curve; accepted: kind/what")
    return names
