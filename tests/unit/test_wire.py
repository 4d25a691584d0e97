"""Messages: what arrives is what was sent, through Flower's own serialisation, or is refused."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from fakes import CONVNET, tiny_config, tiny_images
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from replies import ASKED, CONFIG, SHARE, SPEC, TEACHER, sent

from fedistill import config_file, states, whitening, wire, wire_fedavg
from fedistill.errors import WireError
from fedistill.wire import DescribeRequest, Description

WHITENED = replace(SPEC, zca=whitening.fit(tiny_images().images))


def test_a_share_arrives_bit_for_bit():
    arrived = wire.decode_share(sent(wire.encode_share(SHARE)), ASKED)
    assert arrived.images.dtype == torch.uint8
    assert torch.equal(arrived.images, SHARE.images)
    (teacher,) = arrived.teachers
    assert list(teacher) == list(TEACHER)
    for name, tensor in TEACHER.items():
        assert teacher[name].dtype == tensor.dtype
        assert torch.equal(teacher[name], tensor)
    assert {tensor.dtype for tensor in teacher.values()} == {torch.float32, torch.int64}
    arrays = ("images", "teachers")
    assert replace(arrived, images=SHARE.images, teachers=SHARE.teachers) == SHARE, arrays


def test_an_answer_to_a_second_request_has_no_teacher_curve():
    share = replace(SHARE, teacher_curve=[])
    assert wire.decode_share(sent(wire.encode_share(share)), ASKED).teacher_curve == []


def test_of_a_clients_warnings_only_so_many_are_read():
    share = replace(SHARE, warnings=("first\nline", "long " * 1000, *(f"{n}" for n in range(100))))
    found = wire.decode_share(sent(wire.encode_share(share)), ASKED).warnings
    assert found[0] == "first line"
    assert len(found) == 10
    assert max(map(len, found)) <= 400


def test_several_teachers_keep_their_order():
    request = replace(ASKED, config=tiny_config(teacher={"count": 12}))
    states = tuple({**TEACHER, "classifier.bias": torch.full((3,), n / 8)} for n in range(12))
    share = replace(SHARE, teachers=states)
    arrived = wire.decode_share(sent(wire.encode_share(share)), request).teachers
    assert [state["classifier.bias"][0].item() for state in arrived] == [n / 8 for n in range(12)]


def test_a_request_arrives_whole():
    request = replace(ASKED, attempt=2, made=((1, 0, 4), (0, 0, 2)), teachers=(TEACHER,))
    arrived = wire.decode_distill_request(sent(wire.encode_distill_request(request)))
    assert replace(arrived, teachers=()) == replace(request, teachers=())
    assert all(torch.equal(arrived.teachers[0][name], TEACHER[name]) for name in TEACHER)


@pytest.mark.parametrize(
    ("attempt", "made"),
    [(0, ((1, 0, 0),)), (1, ((1, 0, 0), (0, 0, 1))), (1, ((-1, 0, 0),)), (2, ((1, 0), (1, 0)))],
)
def test_what_was_made_has_a_row_for_each_earlier_attempt(
    attempt: int, made: tuple[tuple[int, ...], ...]
):
    request = sent(wire.encode_distill_request(replace(ASKED, attempt=attempt, made=made)))
    with pytest.raises(WireError, match=r"'made' holds .* numbers"):
        wire.decode_distill_request(request)


def test_a_describe_request_and_its_answer_arrive_whole():
    request = sent(wire.encode_describe_request(CONFIG, SPEC, 4))
    assert wire.decode_describe_request(request) == DescribeRequest(CONFIG, SPEC, 4)
    description = Description(
        4,
        [3, 0, 9],
        {"torch": "2.11", "gpu": ""},
        name="ward 3, left",
        model=config_file.dump_model(CONVNET),
        unknown_classes=("yak",),
        pixels=((12 * 64 - 5, 5, *[0] * 254),),
        held_out=7,
    )
    assert wire.decode_description(sent(wire.encode_description(description)), SPEC) == description
    assert wire.model_of(description) == CONVNET
    assert wire.model_of(replace(description, model="")) is None


def test_a_whitening_arrives_with_the_request_for_images_alone():
    request = replace(ASKED, spec=WHITENED)
    content = wire.encode_distill_request(request)
    assert wire.decode_distill_request(sent(content)) == request
    assert wire.size(content) > wire.size(wire.encode_distill_request(ASKED)) + 4 * 64 * 64
    description = sent(wire.encode_describe_request(CONFIG, WHITENED, 4))
    assert wire.decode_describe_request(description) == DescribeRequest(CONFIG, SPEC, 4)
    assert not description.array_records


def put_whitening(**arrays: np.ndarray) -> Callable[[RecordDict], None]:
    return lambda content: content.array_records["spec"].update(
        {name: Array(array) for name, array in arrays.items()}
    )


WHITENING: dict[str, tuple[Callable[[RecordDict], object], str]] = {
    "none": (lambda content: content.pop("spec"), "zca_mean and zca_matrix are missing"),
    "no matrix": (lambda content: content["spec"].pop("zca_matrix"), "zca_matrix is missing"),
    "not an array": (lambda content: spoil(content, "spec", "zca_mean"), "zca_mean.*cannot"),
    "of other images": (
        put_whitening(zca_mean=np.zeros(4, np.float32), zca_matrix=np.eye(4, dtype=np.float32)),
        "of 4 numbers; accepted: 64",
    ),
    "of another type": (put_whitening(zca_matrix=np.eye(64)), "accepted: torch.float32"),
    "of another shape": (put_whitening(zca_matrix=np.eye(8, 64, dtype=np.float32)), "8, 64"),
    "not finite": (put_whitening(zca_mean=np.full(64, np.nan, np.float32)), "not finite"),
}


@pytest.mark.parametrize(("change", "says"), WHITENING.values(), ids=WHITENING)
def test_a_malformed_whitening_is_a_wire_error(change: Callable[[RecordDict], object], says: str):
    content = wire.encode_distill_request(replace(ASKED, spec=WHITENED))
    change(content)
    with pytest.raises(WireError, match=says):
        wire.decode_distill_request(sent(content))


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"colour": 1}'])
def test_a_malformed_spec_is_a_wire_error(text: str):
    content = wire.encode_distill_request(ASKED)
    content.config_records["request"]["spec-json"] = text
    with pytest.raises(WireError, match="spec"):
        wire.decode_distill_request(content)


def test_the_size_is_that_of_the_bytes_sent():
    content = wire.encode_share(SHARE)
    assert wire.size(content) == len(recorddict_to_proto(content).SerializeToString())
    assert wire.size(content) > SHARE.images.numel()


def test_what_came_from_the_store_changes_no_bytes():
    """A sweep that was killed and resumed counts the bytes of one that was not."""
    shares = [replace(SHARE, from_store=stages) for stages in ((), ("squeeze",), ("recover",))]
    assert len({wire.size(wire.encode_share(share)) for share in shares}) == 1
    for share in shares:
        arrived = wire.decode_share(sent(wire.encode_share(share)), ASKED)
        assert arrived.from_store == share.from_store


def metrics_of(content: RecordDict) -> MetricRecord:
    return content.metric_records["metrics"]


def put_image(array: np.ndarray) -> Callable[[RecordDict], None]:
    return lambda content: content.update({"set": ArrayRecord({"images": Array(array)})})


def put_metric(key: str, value: object) -> Callable[[RecordDict], None]:
    return lambda content: metrics_of(content).update({key: value})  # type: ignore[dict-item]


def put_teacher(value: float, dtype: str = "float32") -> Callable[[RecordDict], None]:
    weight = Array(np.array([1.0, value], dtype=dtype))
    return lambda content: content.update({"teacher-0": ArrayRecord({"weight": weight})})


def spoil(content: RecordDict, record: str, name: str, data: bytes = b"garbage") -> None:
    array = content.array_records[record][name]
    content.array_records[record][name] = Array(array.dtype, array.shape, array.stype, data)


def huge_array() -> bytes:
    """A file of numpy's whose header claims more than any machine has, and little follows."""
    file = BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (2**60,)}
    np.lib.format.write_array_header_1_0(file, shape)
    return file.getvalue() + b"..."


MALFORMED: dict[str, Callable[[RecordDict], object]] = {
    "too few images": put_image(np.zeros((2, 1, 8, 8), np.uint8)),
    "too many images": put_image(np.zeros((4, 1, 8, 8), np.uint8)),
    "images of another size": put_image(np.zeros((3, 1, 9, 9), np.uint8)),
    "images of another type": put_image(np.zeros((3, 1, 8, 8), np.float32)),
    "images that are text": put_image(np.zeros((3, 1, 8, 8), "U1")),
    "images that are no array": lambda content: spoil(content, "set", "images"),
    "images that fill the memory": lambda c: spoil(c, "set", "images", huge_array()),
    "no images": lambda content: content.pop("set"),
    "an empty record of images": lambda content: content.update({"set": ArrayRecord()}),
    "another partition": put_metric("partition-id", 2),
    "other counts": put_metric("counts", [1, 1, 1]),
    "counts that are one number": put_metric("counts", 3),
    "fractions for counts": put_metric("counts", [2.0, 0.0, 1.0]),
    "no counts": lambda content: metrics_of(content).pop("counts"),
    "no partition": lambda content: metrics_of(content).pop("partition-id"),
    "no metrics": lambda content: content.pop("metrics"),
    "metrics of another kind": lambda content: content.update({"metrics": ConfigRecord()}),
    "no seconds": lambda content: metrics_of(content).pop("seconds-recover"),
    "a curve without values": lambda content: metrics_of(content).pop("teacher-curve-values"),
    "a curve with an odd name": lambda content: metrics_of(content).update(
        {"other:../x-curve-steps": [1], "other:../x-curve-values": [1.0]}
    ),
    "too many curves": lambda content: metrics_of(content).update(
        {
            f"other:a/{number}-curve-{what}": [value]
            for number in range(200)
            for what, value in (("steps", 1), ("values", 1.0))
        }
    ),
    "a curve without end": lambda content: metrics_of(content).update(
        {"other:a/b-curve-steps": [0] * 20_000, "other:a/b-curve-values": [0.0] * 20_000}
    ),
    "a curve of another length": put_metric("teacher-curve-values", [1.0]),
    "no teacher": lambda content: content.pop("teacher-0"),
    "a teacher with NaN": put_teacher(float("nan")),
    "a teacher with infinity": put_teacher(float("-inf")),
    "a teacher beyond float32": put_teacher(1e300, "float64"),
    "no notes": lambda content: content.pop("notes"),
    "warnings that are numbers": lambda c: c.config_records["notes"].update({"warnings": [1]}),
    "a teacher that is no array": lambda c: spoil(c, "teacher-0", "classifier.weight"),
}  # fmt: skip


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_share_is_a_wire_error(change: Callable[[RecordDict], object]):
    content = wire.encode_share(SHARE)
    change(content)
    with pytest.raises(WireError):
        wire.decode_share(sent(content), ASKED)


@pytest.mark.parametrize("histogram", [[1, 2], [1, 2, 3, 4], [1, -1, 3], [1.0, 2.0, 3.0]])
def test_a_malformed_description_is_a_wire_error(histogram: list[int]):
    content = wire.encode_description(Description(0, histogram, {}))
    with pytest.raises(WireError, match="histogram"):
        wire.decode_description(sent(content), SPEC)


@pytest.mark.parametrize("record", ["metrics", "machine"])
def test_a_description_with_a_record_missing_is_a_wire_error(record: str):
    content = wire.encode_description(Description(0, [1, 2, 3], {}))
    del content[record]
    with pytest.raises(WireError, match=record):
        wire.decode_description(sent(content), SPEC)


def test_a_request_with_a_record_missing_is_a_wire_error():
    with pytest.raises(WireError, match="request"):
        wire.decode_distill_request(RecordDict())


@pytest.mark.parametrize("key", ["config-yaml", "spec-json", "partition-id", "counts", "attempt"])
def test_a_request_with_a_key_missing_is_a_wire_error(key: str):
    content = wire.encode_distill_request(ASKED)
    del content.config_records["request"][key]
    with pytest.raises(WireError, match=key):
        wire.decode_distill_request(content)


GAME = RecordDict({"arrays": states.encode(TEACHER), "config": ConfigRecord({"server-round": 2})})


def test_a_round_of_fedavg_arrives_whole():
    content = wire_fedavg.encode_train_request(CONFIG, WHITENED, 4, GAME)
    arrived = wire_fedavg.decode_train_request(sent(content))
    assert (arrived.config, arrived.spec, arrived.partition_id) == (CONFIG, WHITENED, 4)
    assert arrived.server_round == 2
    assert arrived.weights.keys() == TEACHER.keys()
    assert all(torch.equal(arrived.weights[name], TEACHER[name]) for name in TEACHER)
    assert set(GAME) == {"arrays", "config"}  # one for all clients: it is left as it is


@pytest.mark.parametrize("record", ["request", "arrays", "config"])
def test_a_round_of_fedavg_with_a_record_missing_is_a_wire_error(record: str):
    content = wire_fedavg.encode_train_request(CONFIG, SPEC, 4, GAME)
    del content[record]
    with pytest.raises(WireError):
        wire_fedavg.decode_train_request(content)


def test_an_update_is_told_with_its_samples_and_its_loss():
    assert wire_fedavg.check_update(sent(wire_fedavg.encode_update(TEACHER, 7, 1.5)), TEACHER) == (
        7,
        1.5,
    )


def put_weight(name: str, array: np.ndarray) -> Callable[[RecordDict], None]:
    return lambda content: content.array_records["arrays"].update({name: Array(array)})


NO_UPDATES: dict[str, tuple[Callable[[RecordDict], object], str]] = {
    "no weights": (lambda content: content.pop("arrays"), "the update has"),
    "no metrics": (lambda content: content.pop("metrics"), "metrics"),
    "more than an update": (lambda c: c.update({"more": ArrayRecord()}), "the update has"),
    "no samples": (put_metric("num-examples", 0), "is 0; expected an integer of 1 or more"),
    "samples that are none": (put_metric("num-examples", 2.5), "num-examples"),
    "no count of samples": (lambda c: metrics_of(c).pop("num-examples"), "the update has"),
    "a metric of its own": (put_metric("more", 1), "the update has"),
    "a loss that is none": (put_metric("train-loss", float("nan")), "train-loss"),
    "losses": (put_metric("train-loss", [1.0]), "train-loss"),
    "weights that are metrics": (
        lambda content: content.update({"arrays": MetricRecord()}), "no arrays",
    ),
    "a weight less": (
        lambda content: content.array_records["arrays"].pop("classifier.bias"), "classifier.bias",
    ),
    "a weight more": (put_weight("more", np.zeros(1, np.float32)), "more"),
    "another shape": (put_weight("classifier.bias", np.zeros(4, np.float32)), "4"),
    "another type": (put_weight("classifier.bias", np.zeros(3)), "float64"),
    "not finite": (
        put_weight("classifier.bias", np.full(3, np.inf, np.float32)), "not finite",
    ),
    "no array": (lambda content: spoil(content, "arrays", "classifier.bias"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), NO_UPDATES.values(), ids=NO_UPDATES)
def test_what_cannot_be_averaged_is_a_wire_error(change: Callable[[RecordDict], object], says: str):
    content = wire_fedavg.encode_update(TEACHER, 7, 1.5)
    change(content)
    with pytest.raises(WireError, match=says):
        wire_fedavg.check_update(sent(content), TEACHER)
