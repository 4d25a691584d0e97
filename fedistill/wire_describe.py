"""What travels before anything is made: who is there, and what each client holds.

See `wire.py` for the other messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedistill import config_file, records, states
from fedistill.config import Config, ModelConfig
from fedistill.errors import UserError, WireError
from fedistill.images import DataSpec

DESCRIBE = "query.describe"
LEVELS = 256  # of a pixel
_NAME_LENGTH = 64  # of a device
_MODEL_LENGTH = 500  # of a device's model, as YAML
_MODEL_BYTES = 600_000_000  # of its state: VGG-16, the largest in use for such images, has 553e6
_CLASSES, _CLASS_LENGTH = 100, 100  # unknown ones that a device tells of
_FACTS, _FACT_LENGTH = 20, 200  # about its machine
_MOST_IMAGES = 10**10  # of a class, or held out: sums of their pixels fit 63 bits
_TEXT = 4096  # bytes that a reply may have beside all that is counted


@dataclass(frozen=True)
class DescribeRequest:
    """What the server asks of a client that it does not know yet.

    Attributes:
        config: of the experiment.
        spec: of the data set, without a whitening.
        partition_id: of the client; -1: its own, if it has one.
        pixels: whether its images' pixel levels are wanted, for their mean and deviation.
    """

    config: Config
    spec: DataSpec
    partition_id: int
    pixels: bool = False


@dataclass(frozen=True)
class Description:
    """What a client says about itself.

    Attributes:
        partition_id: of the client; -1: it has none of its own.
        histogram: images of each class in its shard.
        machine: versions and hardware, for the record.
        name: for people; may be empty.
        model: its own network, as YAML like the config's `model`; empty: the config's.
        unknown_classes: classes of its images that nobody asked for.
        pixels: how often its shard has each level in each channel, [channels][256]; empty: not
            asked for.
        held_out: images that it keeps for tests.
    """

    partition_id: int
    histogram: list[int]
    machine: dict[str, str]
    name: str = ""
    model: str = ""
    unknown_classes: tuple[str, ...] = ()
    pixels: tuple[tuple[int, ...], ...] = ()
    held_out: int = 0


def encode_describe_request(
    config: Config, spec: DataSpec, partition_id: int, pixels: bool = False
) -> RecordDict:
    """Ask a client to describe its shard, as in `DescribeRequest`; that takes no whitening."""
    content = records.request(config, replace(spec, zca=None), partition_id)
    content.config_records["request"]["pixels"] = pixels
    return content


def decode_describe_request(content: RecordDict) -> DescribeRequest:
    """Read what `encode_describe_request` wrote.

    Raises:
        WireError: it does not follow the contract.
    """
    config, spec, partition_id = records.read_request(content)
    pixels = records.flag(records.config_record(content, "request"), "pixels")
    return DescribeRequest(config, spec, partition_id, pixels)


def encode_description(description: Description) -> RecordDict:
    """Answer `query.describe`."""
    unknown = [records.plain(name, _CLASS_LENGTH) for name in description.unknown_classes]
    machine = {key: records.plain(text, _FACT_LENGTH) for key, text in description.machine.items()}
    return RecordDict(
        {
            "metrics": MetricRecord(
                {
                    "partition-id": description.partition_id,
                    "histogram": description.histogram,
                    "num-examples": sum(description.histogram),
                    "held-out": description.held_out,
                    "pixels": [count for channel in description.pixels for count in channel],
                }
            ),
            "device": ConfigRecord(
                {
                    "name": records.plain(description.name, _NAME_LENGTH),
                    "model": description.model,
                    "unknown-classes": unknown[:_CLASSES],
                }
            ),
            "machine": ConfigRecord(dict(machine)),
        }
    )


def largest(spec: DataSpec) -> int:
    """Return the most bytes that a description can hold."""
    texts = _NAME_LENGTH + _MODEL_LENGTH + _CLASSES * _CLASS_LENGTH + _FACTS * 2 * _FACT_LENGTH
    letters = 4 * texts  # bytes of one at most
    return _TEXT + letters + 8 * (spec.num_classes + LEVELS * spec.channels)


def decode_description(content: RecordDict, spec: DataSpec) -> Description:
    """Read a description and check it.

    Args:
        content: of the reply.
        spec: of the request.

    Raises:
        WireError: it does not follow the contract.
    """
    records.check_size(content, largest(spec))
    records.check_names("the description", content, ("metrics", "device", "machine"))
    metrics = records.metric_record(content, "metrics")
    device = records.config_record(content, "device")
    numbers = ("partition-id", "histogram", "num-examples", "held-out", "pixels")
    records.check_names("the description", metrics, numbers)
    records.check_names("the description", device, ("name", "model", "unknown-classes"))
    histogram = records.integers(metrics, "histogram")
    if len(histogram) != spec.num_classes or not (
        0 <= min(histogram) <= max(histogram) <= _MOST_IMAGES
    ):
        raise WireError(
            f"histogram is {records.plain(str(histogram), 80)}; expected {spec.num_classes} counts"
        )
    if records.integer(metrics, "num-examples") != sum(histogram):
        raise WireError(f"'num-examples' is not {sum(histogram)}, the sum of its histogram")
    return Description(
        partition_id=records.integer(metrics, "partition-id", least=-1),
        histogram=histogram,
        machine=_machine(records.config_record(content, "machine")),
        name=_printable(device, "name", _NAME_LENGTH),
        model=_model(records.text(device, "model", _MODEL_LENGTH), spec),
        unknown_classes=_classes(device),
        pixels=_pixels(metrics, sum(histogram), spec),
        held_out=records.integer(metrics, "held-out", least=0, most=_MOST_IMAGES),
    )


def model_of(description: Description) -> ModelConfig | None:
    """Return a client's own network, if it has one."""
    if not description.model:
        return None
    return config_file.read_model(description.model, "the device's model")


def _machine(record: Mapping[str, Any]) -> dict[str, str]:
    if len(record) > _FACTS:
        raise WireError(f"the description holds {len(record)} facts; expected {_FACTS} at most")
    for key in record:
        if not key.isprintable() or len(key) > _NAME_LENGTH:
            raise WireError(f"'{records.plain(key, 60)}' is no name of a fact about a machine")
    return {key: _printable(record, key, _FACT_LENGTH) for key in record}


def _printable(record: Mapping[str, Any], key: str, most: int) -> str:
    """Read a text that will be shown: nothing in it may steer a terminal."""
    found = records.text(record, key, most)
    if not found.isprintable():
        raise WireError(f"'{key}' holds signs that cannot be printed; expected one line of text")
    return found


def _classes(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Read names of classes that will be shown, as other texts are."""
    found = records.texts(record, "unknown-classes", _CLASSES, _CLASS_LENGTH)
    if not all(name.isprintable() for name in found):
        raise WireError(
            "'unknown-classes' holds signs that cannot be printed; expected one line for each name"
        )
    return tuple(found)


def _model(text: str, spec: DataSpec) -> str:
    """Check a client's own network: that it exists, and does not fill the memory."""
    if not text:
        return text
    try:
        found = states.largest(states.form(config_file.read_model(text, "its model"), spec))
    except (UserError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise WireError(f"its model cannot be made: {records.plain(str(error))}") from error
    if found > _MODEL_BYTES:
        raise WireError(f"its model takes {found} bytes; accepted: {_MODEL_BYTES} at most")
    return text


def _pixels(record: Mapping[str, Any], images: int, spec: DataSpec) -> tuple[tuple[int, ...], ...]:
    found = records.integers(record, "pixels", least=0, most=LEVELS * spec.channels)
    if not found:
        return ()
    rows = [tuple(found[start : start + LEVELS]) for start in range(0, len(found), LEVELS)]
    wanted = LEVELS * spec.channels
    if len(found) != wanted or any(sum(row) != images * spec.size**2 for row in rows):
        raise WireError(
            f"'pixels' are {len(found)} counts; expected {LEVELS} for each of {spec.channels} "
            f"channels, each of them {images} images of {spec.size} x {spec.size} in all"
        )
    return tuple(rows)
