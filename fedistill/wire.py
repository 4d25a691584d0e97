"""What travels between server and clients, as Flower records.

Keys are kebab-case, as Flower's own. Nested values travel as one YAML or JSON string, tensors
as arrays of their own type. Decoding checks everything that the code after it relies on, since
what comes from the network is not to be trusted: no reply can hold more than was asked for, and
no number of an array is read that is not of the expected type and shape.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from torch import Tensor

from fedistill import records, states
from fedistill.config import Config
from fedistill.errors import WireError
from fedistill.images import DataSpec
from fedistill.sets import SyntheticSet
from fedistill.shares import Share
from fedistill.wire_describe import (
    DESCRIBE,
    DescribeRequest,
    Description,
    decode_describe_request,
    decode_description,
    encode_describe_request,
    encode_description,
    model_of,
)

__all__ = [
    "DESCRIBE",
    "DISTILL",
    "DescribeRequest",
    "Description",
    "DistillRequest",
    "decode_describe_request",
    "decode_description",
    "decode_distill_request",
    "decode_share",
    "encode_describe_request",
    "encode_description",
    "encode_distill_request",
    "encode_sets",
    "encode_share",
    "largest",
    "model_of",
    "size",
]

DISTILL = "train.distill"
_STAGES = ("squeeze", "recover")  # of a client
_STEPS, _VALUES = "-curve-steps", "-curve-values"  # what the two lists of a curve end with
_OTHER = "other:"  # what the names of a method's own curves begin with
_CURVE_NAME = re.compile(r"[a-z]+/[\w-]{1,50}", re.ASCII)
# Most of a share, and the points of one: a teacher's has its epochs. A method's own curves have
# about fifty points each (`distillers/base.py`, Trace), so together no more than one may have.
_CURVES, _CURVE_LENGTH = 100, 10_000
_LAST_STEP = 10**9  # of a curve
# Seconds of a stage: thirty years. This run's deadline is no bound: what came from a client's store
# may have been made in a run with another.
_LONGEST = 10**9
_WARNINGS, _WARNING_LENGTH = 10, 400  # most of a share, and their length
_TEXT = 4096  # bytes that a reply may have beside all that is counted


@dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """What the server asks of a client: `counts` images of each class, beside those `made`.

    Counts are as in `planning.requests`: one row for all sets, or one for each. Of those made they
    are there for each earlier attempt.
    """

    config: Config
    spec: DataSpec
    partition_id: int
    counts: list[int]
    attempt: int = 0
    made: tuple[tuple[int, ...], ...] = ()
    teachers: tuple[Mapping[str, Tensor], ...] = ()


def size(content: RecordDict) -> int:
    """Return the bytes of a message's content as Flower serialises it.

    Of what it would not serialise, and only a hostile client sends, about as many as it holds.
    """
    try:
        return int(recorddict_to_proto(content).ByteSize())
    except (TypeError, ValueError):
        return records.held(content)


def encode_distill_request(request: DistillRequest) -> RecordDict:
    """Ask a client for its share.

    A whitening travels with the spec: a client sees its own shard alone, and could not fit it.
    """
    content = records.request(request.config, request.spec, request.partition_id)
    record = content.config_records["request"]
    record["counts"] = request.counts
    record["attempt"] = request.attempt
    record["made"] = [count for before in request.made for count in before]
    content.update(_encode_teachers(request.teachers))
    return content


def decode_distill_request(content: RecordDict) -> DistillRequest:
    """Read what `encode_distill_request` wrote.

    Raises:
        WireError: it does not follow the contract.
    """
    config, spec, partition_id = records.read_request(content)
    record = records.config_record(content, "request")
    counts, made = records.integers(record, "counts"), records.integers(record, "made")
    attempt, entries = records.integer(record, "attempt"), len(counts)
    if len(made) not in (0, attempt * entries) or min(made, default=0) < 0:
        raise WireError(
            f"'made' holds {len(made)} numbers from {min(made, default=0)} on; expected none, or "
            f"{entries} of 0 or more for each of {attempt} earlier attempts"
        )
    return DistillRequest(
        config=config,
        spec=spec,
        partition_id=partition_id,
        counts=counts,
        attempt=attempt,
        made=tuple(
            tuple(made[start : start + entries]) for start in range(0, len(made), max(1, entries))
        ),
        teachers=_decode_teachers(content, config, spec, partition_id),
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
            "notes": ConfigRecord({"warnings": _shortened(share.warnings)}),
            **_encode_teachers(share.teachers),
        }
    )


def largest(request: DistillRequest) -> int:
    """Return the most bytes that the answer to a request can hold."""
    spec, config = request.spec, request.config
    images = sum(request.counts) * spec.channels * spec.size**2
    models = config.teachers_of(request.partition_id) if config.relabel.at == "server" else ()
    curves = 3 * 16 * _CURVE_LENGTH  # the teacher's, that of recover, all others
    teachers = sum(states.largest(states.form(model, spec)) for model in models)
    texts = 4 * _WARNINGS * _WARNING_LENGTH + (_CURVES + 2) * 256  # names of curves
    return images + teachers + curves + texts + 8 * len(request.counts) + _TEXT


def decode_share(content: RecordDict, request: DistillRequest) -> Share:
    """Read a share and check that it is what was asked for.

    Raises:
        WireError: it is not.
    """
    records.check_size(content, largest(request))
    teachers = _decode_teachers(content, request.config, request.spec, request.partition_id)
    if request.config.relabel.at == "clients" and teachers:
        raise WireError("the share holds a teacher, which was to stay at home")
    if request.config.relabel.at == "server" and not teachers:
        raise WireError("the share holds no teacher")
    names = [f"teacher-{number}" for number in range(len(teachers))]
    records.check_names("the share", content, ("set", "metrics", "notes", *names))
    records.check_names("the share", content.array_records.get("set", {}), ("images",))
    metrics = records.metric_record(content, "metrics")
    own = ("teacher", "recover")
    others = _others(metrics)
    records.check_names(
        "the share",
        metrics,
        [
            *("partition-id", "num-examples", "counts"),
            *(f"{what}-{stage}" for what in ("seconds", "from-store") for stage in _STAGES),
            *(f"{name}{end}" for name in (*own, *others) for end in (_STEPS, _VALUES)),
        ],
    )
    partition_id = records.integer(metrics, "partition-id")
    counts = records.integers(metrics, "counts", most=len(request.counts))
    if partition_id != request.partition_id or counts != request.counts:
        raise WireError(
            f"the share is of partition {partition_id} with {records.plain(str(counts), 80)} "
            f"images per class; asked for partition {request.partition_id} with {request.counts}"
        )
    if records.integer(metrics, "num-examples") != sum(counts):
        raise WireError(f"'num-examples' is not {sum(counts)}, the sum of its counts")
    curves = {name.removeprefix(_OTHER): _curve(metrics, name) for name in others}
    points = sum(map(len, curves.values()))
    if points > _CURVE_LENGTH:
        raise WireError(f"its method's curves have {points} points; at most {_CURVE_LENGTH}")
    spec = request.spec
    shape = (sum(counts), spec.channels, spec.size, spec.size)
    notes = records.config_record(content, "notes")
    records.check_names("the share", notes, ("warnings",))
    return Share(
        partition_id=partition_id,
        images=records.array(content, "set", "images", torch.uint8, shape),
        counts=tuple(counts),
        teachers=teachers,
        teacher_curve=_curve(metrics, "teacher"),
        recover_curve=_curve(metrics, "recover"),
        curves=curves,
        seconds={stage: _seconds(metrics, f"seconds-{stage}") for stage in _STAGES},
        from_store=tuple(
            stage for stage in _STAGES if records.integer(metrics, f"from-store-{stage}", least=0)
        ),
        warnings=tuple(_shortened(records.texts(notes, "warnings", _WARNINGS, _WARNING_LENGTH))),
    )


def _encode_teachers(teachers: Sequence[Mapping[str, Tensor]]) -> dict[str, ArrayRecord]:
    return {f"teacher-{number}": states.encode(state) for number, state in enumerate(teachers)}


def _decode_teachers(
    content: RecordDict, config: Config, spec: DataSpec, partition_id: int
) -> tuple[Mapping[str, Tensor], ...]:
    """Read a client's teachers: all of them, or none."""
    held = [key for key in content.array_records if key.startswith("teacher-")]
    if not held:
        return ()
    models = config.teachers_of(partition_id)
    names = [f"teacher-{number}" for number in range(len(models))]
    records.check_names("the list of teachers", held, names)
    return tuple(
        states.decode(content.array_records[name], states.form(model, spec), name)
        for name, model in zip(names, models, strict=True)
    )


def _shortened(warnings: Sequence[str]) -> list[str]:
    return [records.plain(text, _WARNING_LENGTH) for text in warnings[:_WARNINGS]]


def _seconds(record: Mapping[str, Any], key: str) -> float:
    found = records.number(record, key)
    if not 0 <= found <= _LONGEST:
        raise WireError(f"'{key}' is {found}; expected 0 or more, {_LONGEST} at most")
    return found


def _curve(record: Mapping[str, Any], name: str) -> list[tuple[int, float]]:
    steps = records.integers(record, f"{name}{_STEPS}", least=0, most=_CURVE_LENGTH)
    values = records.numbers(record, f"{name}{_VALUES}")
    if len(values) != len(steps):
        raise WireError(f"the curve '{name}' has {len(steps)} steps and {len(values)} values")
    if max(steps, default=0) > _LAST_STEP:
        raise WireError(f"the curve '{name}' goes to step {max(steps)}; at most {_LAST_STEP}")
    return list(zip(steps, values, strict=True))


def _others(record: Mapping[str, Any]) -> list[str]:
    found = [key for key in record if key.startswith(_OTHER) and key.endswith(_STEPS)]
    if len(found) > _CURVES:
        raise WireError(f"the share holds {len(found)} curves; at most {_CURVES}")
    names = sorted(key.removesuffix(_STEPS) for key in found)
    for name in names:
        if not _CURVE_NAME.fullmatch(name.removeprefix(_OTHER)):
            raise WireError(
                f"'{records.plain(name, 80)}' is no name of a curve; accepted: kind/what"
            )
    return names


def encode_sets(sets: Mapping[int, SyntheticSet]) -> ArrayRecord:
    """Turn the sets of a run, by IPC, into the arrays that are its result for Flower."""
    arrays = {}
    for ipc, synthetic in sets.items():
        arrays[f"ipc-{ipc}/images"] = Array(synthetic.images.numpy())
        arrays[f"ipc-{ipc}/hard-labels"] = Array(synthetic.hard_labels.numpy())
        arrays[f"ipc-{ipc}/clients"] = Array(synthetic.clients.numpy())
        if synthetic.soft_labels is not None:
            arrays[f"ipc-{ipc}/teacher-logits"] = Array(synthetic.soft_labels.logits.numpy())
    return ArrayRecord(arrays)
