"""What travels where devices test students: the students down, counts up.

See `wire.py` for the other messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from fedistill import config_file, records, states
from fedistill.config import Config, ModelConfig
from fedistill.counts import Counts
from fedistill.errors import UserError, WireError
from fedistill.images import DataSpec

EVALUATE = "query.evaluate"
_OVERHEAD = 1024  # bytes of an answer beside its counts
_MODEL_LENGTH = 500  # of a network, as YAML
_MOST_STUDENTS = 1000


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What the server asks of a client that is to test students on images of its own.

    Attributes:
        model: the network of all of them.
        students: weights and buffers of each.
    """

    config: Config
    spec: DataSpec
    partition_id: int
    model: ModelConfig
    students: tuple[Mapping[str, Tensor], ...]


def encode_evaluate_request(request: EvaluateRequest) -> RecordDict:
    """Ask a client to test students."""
    content = records.request(request.config, request.spec, request.partition_id)
    record = content.config_records["request"]
    record["model"] = config_file.dump_model(request.model)
    record["students"] = len(request.students)
    for number, student in enumerate(request.students):
        content[f"student-{number}"] = states.encode(student)
    return content


def decode_evaluate_request(content: RecordDict) -> EvaluateRequest:
    """Read what `encode_evaluate_request` wrote.

    Raises:
        WireError: it does not follow the contract.
    """
    config, spec, partition_id = records.read_request(content)
    record = records.config_record(content, "request")
    count = records.integer(record, "students", least=1)
    if count > _MOST_STUDENTS:
        raise WireError(f"the request holds {count} students; expected {_MOST_STUDENTS} at most")
    try:
        text = records.text(record, "model", _MODEL_LENGTH)
        model = config_file.read_model(text, "the students' model")
        form = states.form(model, spec)
    except (UserError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        text = records.plain(str(error))
        raise WireError(f"the students' network cannot be made: {text}") from error
    names = [f"student-{number}" for number in range(count)]
    held = [name for name in content.array_records if name != "spec"]
    records.check_names("the list of students", held, names)
    return EvaluateRequest(
        config=config,
        spec=spec,
        partition_id=partition_id,
        model=model,
        students=tuple(
            states.decode(content.array_records[name], form, f"'{name}'") for name in names
        ),
    )


def encode_counts(partition_id: int, counts: Counts) -> RecordDict:
    """Answer `query.evaluate`."""
    metrics = MetricRecord(
        {
            "partition-id": partition_id,
            "images": list(counts.images),
            "correct": [count for student in counts.correct for count in student],
        }
    )
    return RecordDict({"metrics": metrics})


def largest(request: EvaluateRequest) -> int:
    """Return the most bytes that the answer to a request can hold."""
    return 8 * request.spec.num_classes * (1 + len(request.students)) + _OVERHEAD


def decode_counts(content: RecordDict, request: EvaluateRequest, held_out: int) -> Counts:
    """Read a client's counts and check that they are possible.

    Args:
        content: of the reply.
        request: what was asked.
        held_out: how many images the client has said that it keeps for tests: what it adds to
            the sum of all clients must not be what it likes.

    Raises:
        WireError: they are not.
    """
    records.check_size(content, largest(request))
    records.check_names("the answer", content, ("metrics",))
    metrics = records.metric_record(content, "metrics")
    records.check_names("the answer", metrics, ("partition-id", "images", "correct"))
    partition_id = records.integer(metrics, "partition-id")
    if partition_id != request.partition_id:
        raise WireError(f"the counts are of partition {partition_id}, not {request.partition_id}")
    classes, students = request.spec.num_classes, len(request.students)
    images = records.integers(metrics, "images", least=0, most=classes)
    correct = records.integers(metrics, "correct", least=0, most=classes * students)
    if (len(images), len(correct)) != (classes, classes * students):
        raise WireError(
            f"there are {len(correct)} counts for {len(images)} classes; expected {students} for "
            f"each of {classes}"
        )
    if sum(images) != held_out:
        raise WireError(f"it tested on {sum(images)} images; it has spoken of {held_out}")
    rows = [tuple(correct[start : start + classes]) for start in range(0, len(correct), classes)]
    if any(right > all_ for row in rows for right, all_ in zip(row, images, strict=True)):
        raise WireError("it counts more images of a class as right than it has")
    return Counts(tuple(images), tuple(rows))
