"""What a hostile device may answer: each kind is refused with a WireError, and takes no memory."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CONVNET, tiny_config, tiny_set, tiny_spec, tiny_teacher
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill import records, wire, wire_evaluate, wire_labels
from fedistill.counts import Counts
from fedistill.crops import ViewOptions
from fedistill.distillers.base import Trace
from fedistill.errors import WireError
from fedistill.models.build import names
from fedistill.shares import Share
from fedistill.wire import Description, DistillRequest
from fedistill.wire_evaluate import EvaluateRequest
from fedistill.wire_labels import LabelRequest

SPEC = tiny_spec()
CONFIG = tiny_config()
TEACHER = {name: tensor.clone() for name, tensor in tiny_teacher().state_dict().items()}
ASKED = DistillRequest(config=CONFIG, spec=SPEC, partition_id=3, counts=[2, 0, 1])
SHARE = Share(
    partition_id=3,
    images=torch.arange(3 * 64, dtype=torch.uint8).view(3, 1, 8, 8),
    counts=(2, 0, 1),
    teachers=(TEACHER,),
    teacher_curve=[(1, 2.5), (2, 1.25)],
    recover_curve=[(0, 9.0)],
    curves={"matching/ipc-10": [(0, 2.0), (7, 0.5)]},
    seconds={"squeeze": 1.5, "recover": 2.5},
    warnings=("the shard is small",),
)
DESCRIPTION = Description(
    3,
    [5, 0, 7],
    {"python": "3.11", "gpu": ""},
    name="ward 3",
    model="name: convnet\ndepth: 2\n",
    unknown_classes=("yak",),
    pixels=((12 * 64, *[0] * 255),),
    held_out=4,
)
TO_LABEL = LabelRequest(
    config=tiny_config(relabel={"at": "clients"}),
    spec=SPEC,
    partition_id=3,
    images=tiny_set().images,
    seed=1,
    options=ViewOptions(),
    mine=torch.ones(2, 6, dtype=torch.bool),
)

TO_TEST = EvaluateRequest(
    config=CONFIG, spec=SPEC, partition_id=3, model=CONVNET, students=(TEACHER, TEACHER)
)
COUNTS = Counts((4, 0, 6), ((4, 0, 5), (1, 0, 2)))

Change = Callable[[RecordDict], object]


@dataclass(frozen=True)
class Reply:
    """A kind of reply: a good one, and who reads it."""

    make: Callable[[], RecordDict]
    read: Callable[[RecordDict], Any]


REPLIES = {
    "share": Reply(
        lambda: wire.encode_share(SHARE), lambda content: wire.decode_share(content, ASKED)
    ),
    "description": Reply(
        lambda: wire.encode_description(DESCRIPTION),
        lambda content: wire.decode_description(content, SPEC),
    ),
    "labels": Reply(
        lambda: wire_labels.encode_answers(3, torch.zeros(12, 3).half()),
        lambda content: wire_labels.decode_answers(content, TO_LABEL),
    ),
    "counts": Reply(
        lambda: wire_evaluate.encode_counts(3, COUNTS),
        lambda content: wire_evaluate.decode_counts(content, TO_TEST, held_out=10),
    ),
}


def sent(content: RecordDict) -> RecordDict:
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def put(record: str, key: str, value: Any) -> Change:
    """Change a value of a metric or config record."""
    return lambda content: content[record].update({key: value})  # type: ignore[dict-item]


def put_array(record: str, name: str, value: Any) -> Change:
    array = value if isinstance(value, Array) else Array(np.asarray(value))
    return lambda content: content.array_records[record].update({name: array})


def drop(record: str, key: str) -> Change:
    return lambda content: content[record].pop(key)


def replaced(record: str, other: Any) -> Change:
    return lambda content: content.update({record: other})


def header(descr: str, shape: tuple[int, ...], data: bytes = b"...") -> Array:
    """An array whose header says what it likes, and little follows."""
    file = BytesIO()
    form = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, form)
    return Array("uint8", (3,), "numpy.ndarray", file.getvalue() + data)


def raw_header(text: str) -> Array:
    head = text.encode()
    magic = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little")
    return Array("uint8", (3,), "numpy.ndarray", magic + head)


def teacher(name: str, value: Any) -> Change:
    return put_array("teacher-0", name, value)


def bomb(first: str) -> str:
    """YAML of lists: each names the one before nine times."""
    lines = [f"- &{it} [{','.join([f'*{before}'] * 9)}]" for before, it in pairwise("abcdefg")]
    return "\n".join([first, *lines])


IMAGES = Array(SHARE.images.numpy())
BIAS, VARIANCE = "classifier.bias", next(name for name in TEACHER if "running_var" in name)
MANY = 200_000

HOSTILE: dict[str, dict[str, Change]] = {
    "share": {
        "more images than asked": put_array("set", "images", np.zeros((4, 1, 8, 8), np.uint8)),
        "fewer images": put_array("set", "images", np.zeros((2, 1, 8, 8), np.uint8)),
        "images of another size": put_array("set", "images", np.zeros((3, 1, 9, 9), np.uint8)),
        "images in colour": put_array("set", "images", np.zeros((3, 3, 8, 8), np.uint8)),
        "images in a row": put_array("set", "images", np.zeros(192, np.uint8)),
        "signed images": put_array("set", "images", np.zeros((3, 1, 8, 8), np.int8)),
        "fractions for images": put_array("set", "images", np.zeros((3, 1, 8, 8), np.float32)),
        "images that are text": put_array("set", "images", np.zeros((3, 1, 8, 8), "U1")),
        "objects for images": put_array("set", "images", header("|O", (3, 1, 8, 8))),
        "a header of 2**60 images": put_array("set", "images", header("|u1", (2**60,))),
        "a header of 64 GB": put_array("set", "images", header("|u1", (2**36,))),
        "a header of one huge number": put_array("set", "images", header("|V2000000000", ())),
        "a header with a negative size": put_array("set", "images", header("|u1", (-3, 1, 8, 8))),
        "the right header and no images": put_array(
            "set", "images", header("|u1", (3, 1, 8, 8), b"")
        ),
        "the right header and more images": put_array(
            "set", "images", header("|u1", (3, 1, 8, 8), bytes(193))
        ),
        "a header that is a program": put_array("set", "images", raw_header("__import__('os')")),
        "a header of brackets": put_array("set", "images", raw_header("(" * 9000)),
        "a header of minus signs": put_array("set", "images", raw_header("-" * 9000 + "1")),
        "images said to be of another shape": put_array(
            "set", "images", Array("uint8", (2**31 - 1,), "numpy.ndarray", IMAGES.data)
        ),
        "images said to be fractions": put_array(
            "set", "images", Array("float32", IMAGES.shape, "numpy.ndarray", IMAGES.data)
        ),
        "a pickle": put_array(
            "set", "images", Array("uint8", (3,), "numpy.ndarray", b"\x80\x04N.")
        ),
        "another serialisation": put_array(
            "set", "images", Array("uint8", (3, 1, 8, 8), "pickle", header("|u1", (3,)).data)
        ),
        "no bytes": put_array("set", "images", Array("uint8", (), "numpy.ndarray", b"")),
        "a second set": put_array("set", "more", np.zeros(3, np.uint8)),
        "a record more": replaced("more", ConfigRecord({"a": 1})),
        "a record of arrays more": replaced("more", ArrayRecord()),
        "no set": lambda content: content.pop("set"),
        "metrics for a set": replaced("set", MetricRecord({"images": 1})),
        "arrays for metrics": replaced("metrics", ArrayRecord()),
        "another client's share": put("metrics", "partition-id", 2),
        "other counts": put("metrics", "counts", [1, 1, 1]),
        "negative counts": put("metrics", "counts", [2, -1, 2]),
        "counts without end": put("metrics", "counts", [0] * MANY),
        "another sum": put("metrics", "num-examples", 4),
        "a metric more": put("metrics", "weight", 1.0),
        "a metric of its own without a name": put("metrics", "", 1.0),
        "endless seconds": put("metrics", "seconds-squeeze", float("inf")),
        "seconds that are no number": put("metrics", "seconds-squeeze", float("nan")),
        "seconds beyond all time": put("metrics", "seconds-recover", 1.7e308),
        "negative seconds": put("metrics", "seconds-recover", -1.0),
        "a list of seconds": put("metrics", "seconds-recover", [1.0]),
        "no seconds": drop("metrics", "seconds-recover"),
        "a curve without end": lambda content: content["metrics"].update(
            {"teacher-curve-steps": [1] * 20_000, "teacher-curve-values": [0.0] * 20_000}
        ),
        "a curve with NaN": put("metrics", "teacher-curve-values", [float("nan"), 1.0]),
        "a curve beyond numbers": put("metrics", "teacher-curve-values", [1.7e308, 1.0]),
        "ten curves of 1001 points": lambda content: content["metrics"].update(
            {
                f"other:a/{number}-curve-{what}": [value] * 1001
                for number in range(10)
                for what, value in (("steps", 1), ("values", 1.0))
            }
        ),
        "a curve that goes back": put("metrics", "recover-curve-steps", [-1]),
        "a curve that goes too far": put("metrics", "recover-curve-steps", [2**63 - 1]),
        "a curve of steps alone": drop("metrics", "recover-curve-values"),
        "a curve of values alone": put("metrics", "other:a/b-curve-values", [1.0]),
        "a curve named as a path": lambda content: content["metrics"].update(
            {"other:../../x-curve-steps": [1], "other:../../x-curve-values": [1.0]}
        ),
        "a thousand curves": lambda content: content["metrics"].update(
            {
                f"other:a/{number}-curve-{what}": [value]
                for number in range(1000)
                for what, value in (("steps", 1), ("values", 1.0))
            }
        ),
        "a bomb of warnings": put("notes", "warnings", ["boom " * MANY]),
        "a million warnings": put("notes", "warnings", ["boom"] * MANY),
        "warnings that are bytes": put("notes", "warnings", [b"boom"]),
        "a note more": put("notes", "more", "text"),
        "no notes": lambda content: content.pop("notes"),
        "no teacher": lambda content: content.pop("teacher-0"),
        "two teachers": replaced("teacher-1", ArrayRecord()),
        "a teacher of another number": lambda content: content.update(
            {"teacher-7": content.pop("teacher-0")}
        ),
        "a teacher with a weight more": teacher("backdoor", np.zeros(3, np.float32)),
        "a teacher with a weight less": drop("teacher-0", BIAS),
        "a teacher without weights": replaced("teacher-0", ArrayRecord()),
        "a teacher that is a metric": replaced("teacher-0", MetricRecord({"w": 1.0})),
        "a teacher of another shape": teacher(BIAS, np.zeros(4, np.float32)),
        "a teacher of double precision": teacher(BIAS, np.zeros(3)),
        "a teacher with NaN": teacher(BIAS, np.full(3, np.nan, np.float32)),
        "a teacher with infinity": teacher(BIAS, np.full(3, np.inf, np.float32)),
        "a teacher with a negative variance": teacher(VARIANCE, np.full(8, -1, np.float32)),
        "a teacher that claims 64 GB": teacher(BIAS, header("<f4", (2**34,))),
        "a teacher that is garbage": teacher(
            BIAS, Array("float32", (3,), "numpy.ndarray", b"garbage")
        ),
        "a teacher far too large": teacher(BIAS, np.zeros(10**6, np.float32)),
    },
    "description": {
        "negative counts": put("metrics", "histogram", [5, -1, 7]),
        "too few classes": put("metrics", "histogram", [5, 7]),
        "a million classes": put("metrics", "histogram", [1] * MANY),
        "more images than there are": put("metrics", "histogram", [2**63, 2**63, 1]),
        "no histogram": drop("metrics", "histogram"),
        "another sum": put("metrics", "num-examples", 1),
        "a partition below -1": put("metrics", "partition-id", -2),
        "a fraction for a partition": put("metrics", "partition-id", 1.5),
        "images held out below none": put("metrics", "held-out", -1),
        "more images held out than there are": put("metrics", "held-out", 2**63 - 1),
        "pixels of another number": put("metrics", "pixels", [12 * 64 + 1, *[0] * 255]),
        "pixels below none": put("metrics", "pixels", [12 * 64 + 1, -1, *[0] * 254]),
        "pixels of another channel": put("metrics", "pixels", [12 * 64, *[0] * 255] * 3),
        "pixels of half a channel": put("metrics", "pixels", [12 * 64, *[0] * 127]),
        "a metric more": put("metrics", "more", 1),
        "a name that is a book": put("device", "name", "a" * MANY),
        "a name that steers the terminal": put("device", "name", "\x1b[2Jward"),
        "a name of two lines": put("device", "name", "ward 3\nclient 0 failed"),
        "a name turned round": put("device", "name", "ward \u202e3"),
        "true for a name": put("device", "name", True),
        "a model of another planet": put("device", "model", "name: mothership"),
        "a model that fills the memory": put(
            "device", "model", "{name: convnet, width: 1000000, norm: batch}"
        ),
        "a model beyond numbers": put("device", "model", f"{{name: convnet, width: {10**30}}}"),
        "a model of negative width": put("device", "model", "{name: convnet, width: -1}"),
        "a model with a key more": put("device", "model", "{name: convnet, weights: http://x}"),
        "a model that is a bomb": put(
            "device",
            "model",
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n" for p, n in ("ab", "bc", "cd")),
        ),
        "a model that is a bomb of lists": put("device", "model", bomb("- &a [x,x,x,x,x,x,x,x,x]")),
        "a model whose name is a bomb": put("device", "model", bomb("name:\n- &a [xxxxxxxxx]")),
        "a model with an alias": put("device", "model", "{name: &a convnet, norm: *a}"),
        "a model of lists": put("device", "model", "{name: convnet, depth: [2]}"),
        "a model of sections": put("device", "model", "{name: {name: convnet}}"),
        "a model without end": put("device", "model", "&a [*a]"),
        "a model that is an object": put("device", "model", "!!python/object/apply:os.getpid []"),
        "a model that is a list": put("device", "model", "[convnet]"),
        "a model that is a book": put("device", "model", "#" * MANY),
        "a million classes nobody asked for": put("device", "unknown-classes", ["x"] * MANY),
        "a class that is a book": put("device", "unknown-classes", ["x" * MANY]),
        "classes that are numbers": put("device", "unknown-classes", [1, 2]),
        "a million facts": replaced("machine", ConfigRecord({f"{n}": "" for n in range(5000)})),
        "a fact that is a book": put("machine", "python", "3" * MANY),
        "a fact that is a number": put("machine", "python", 3),
        "a fact that steers the terminal": put("machine", "\x1b[31m", "red"),
        "arrays of its own": replaced("more", ArrayRecord()),
        "no device": lambda content: content.pop("device"),
        "metrics for a machine": replaced("machine", MetricRecord()),
    },
    "labels": {
        "another client's": put("metrics", "partition-id", 4),
        "a metric more": put("metrics", "more", 4),
        "too few": put_array("labels", "logits", np.zeros((11, 3), np.float16)),
        "of more classes": put_array("labels", "logits", np.zeros((12, 4), np.float16)),
        "in single precision": put_array("labels", "logits", np.zeros((12, 3), np.float32)),
        "not finite": put_array("labels", "logits", np.full((12, 3), np.nan, np.float16)),
        "twice": put_array("labels", "more", np.zeros((12, 3), np.float16)),
        "beside a set": replaced("set", ArrayRecord()),
        "a header of 64 GB": put_array("labels", "logits", header("<f2", (2**35, 1))),
        "far too many": put_array("labels", "logits", np.zeros((MANY, 3), np.float16)),
        "none": lambda content: content.pop("labels"),
    },
    "counts": {
        "another client's": put("metrics", "partition-id", 4),
        "of no client": drop("metrics", "partition-id"),
        "a metric more": put("metrics", "more", 4),
        "more right than there are": put("metrics", "correct", [5, 0, 5, 1, 0, 2]),
        "fewer than none": put("metrics", "correct", [-1, 0, 5, 1, 0, 2]),
        "of another student": put("metrics", "correct", [4, 0, 5]),
        "of a million students": put("metrics", "correct", [0] * MANY),
        "fractions": put("metrics", "correct", [4.0, 0.0, 5.0, 1.0, 0.0, 2.0]),
        "one number": put("metrics", "correct", 4),
        "of other classes": put("metrics", "images", [10]),
        "of images below none": put("metrics", "images", [11, -1, 0]),
        "of more images than it has": put("metrics", "images", [10**12, 0, 0]),
        "beside a set": replaced("set", ArrayRecord()),
        "as a config": replaced("metrics", ConfigRecord({"partition-id": 3})),
        "none": lambda content: content.pop("metrics"),
    },
}


@pytest.fixture(scope="module", autouse=True)
def _torchvision_is_imported() -> None:
    names()


CASES = [(reply, change) for reply, kinds in HOSTILE.items() for change in kinds]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_good_reply_is_read(reply: str):
    REPLIES[reply].read(sent(REPLIES[reply].make()))


@pytest.mark.parametrize(("reply", "kind"), CASES, ids=[": ".join(case) for case in CASES])
def test_a_hostile_reply_is_refused_and_takes_no_memory(reply: str, kind: str):
    content = REPLIES[reply].make()
    HOSTILE[reply][kind](content)
    content = sent(content)
    tracemalloc.start()
    try:
        with pytest.raises(WireError) as caught:
            REPLIES[reply].read(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_share_is_as_large_as_it_may_be():
    """The bound is one that a good share meets, and no wider than curves and texts need."""
    held = records.held(wire.encode_share(SHARE))
    without = replace(ASKED, counts=[0, 0, 0])
    assert held < wire.largest(ASKED)
    assert wire.largest(ASKED) - wire.largest(without) == 3 * 64
    teachers = wire.largest(ASKED) - wire.largest(
        replace(ASKED, config=tiny_config(relabel={"at": "clients"}))
    )
    weights = sum(tensor.numel() * tensor.itemsize for tensor in TEACHER.values())
    assert weights < teachers < weights + 2000 * len(TEACHER)


def test_a_share_of_as_many_curves_as_a_method_can_note_is_read():
    trace = Trace(99)  # for no other number of steps are there more points
    for step in range(99):
        trace.note(step, {f"matching/{number}": torch.tensor(float(step)) for number in range(100)})
    epochs = [(epoch, 1.5) for epoch in range(10_000)]
    seconds = {"squeeze": 1e7, "recover": 0.0}
    share = replace(SHARE, teacher_curve=epochs, curves=trace.curves, seconds=seconds)
    found = wire.decode_share(sent(wire.encode_share(share)), ASKED)
    assert (found.teacher_curve, found.curves) == (epochs, trace.curves)
    assert sum(map(len, found.curves.values())) == 9900


def test_a_reply_that_flower_would_not_serialise_has_a_size():
    content = wire.encode_share(SHARE)
    array = content.array_records["set"]["images"]
    content.array_records["set"]["images"] = Array("uint8", (2**40,), array.stype, array.data)
    assert 0 < wire.size(content) < 1_000_000


# Anything in the place of anything

scalars = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.floats(), max_size=5),
)
values = st.one_of(
    scalars,
    st.booleans(),
    st.text(max_size=30),
    st.binary(max_size=30),
    st.lists(st.booleans(), max_size=3),
    st.lists(st.text(max_size=9), max_size=3),
)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
arrays = st.one_of(
    st.builds(np.zeros, shapes, st.sampled_from(["u1", "f4", "f2", "i8", "c8", "?", "U2", "M8[s]"]))
    .map(Array),
    st.builds(
        Array,
        st.text(max_size=8),
        st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
        st.sampled_from(["numpy.ndarray", "pickle", ""]),
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=150).map(lambda text: raw_header(text).data),
        ),
    ),
)  # fmt: skip
keys = st.one_of(st.text(max_size=12), st.sampled_from(["images", "counts", "name", "logits"]))
any_record = st.one_of(
    st.dictionaries(keys, scalars, max_size=3).map(MetricRecord),
    st.dictionaries(keys, values, max_size=3).map(ConfigRecord),
    st.dictionaries(keys, arrays, max_size=3).map(ArrayRecord),
)


@st.composite
def tampered(draw: st.DrawFn) -> tuple[str, RecordDict]:
    """A good reply with one to three things changed, added or taken away."""
    reply = draw(st.sampled_from(sorted(REPLIES)))
    content = REPLIES[reply].make()
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.one_of(st.sampled_from(sorted(content) or ["set"]), st.text(max_size=9)))
        record = content.get(name)
        action = draw(st.sampled_from(["record", "value", "value", "value", "key", "drop", "gone"]))
        if record is None or action == "record":
            content[name] = draw(any_record)
        elif action == "gone":
            del content[name]
        else:
            known = st.sampled_from(sorted(record)) if record else keys
            key = draw(keys if action == "key" else known)
            if action == "drop":
                record.pop(key, None)
            elif isinstance(record, ArrayRecord):
                record[key] = draw(arrays)
            else:
                record[key] = draw(scalars if isinstance(record, MetricRecord) else values)
    return reply, content


@settings(max_examples=150)
@given(case=tampered())
def test_whatever_arrives_is_read_as_a_good_reply_or_is_a_wire_error(
    case: tuple[str, RecordDict],
):
    reply, content = case
    try:
        found = REPLIES[reply].read(sent(content))
    except WireError:
        return
    if isinstance(found, Share):
        assert found.images.shape == SHARE.images.shape
        assert found.counts == SHARE.counts
        assert {name: it.shape for name, it in found.teachers[0].items()} == {
            name: it.shape for name, it in TEACHER.items()
        }
        assert all(np.isfinite(value) for _, value in [*found.teacher_curve, *found.recover_curve])
        assert all(0 <= value < np.inf for value in found.seconds.values())
    elif isinstance(found, Description):
        assert len(found.histogram) == 3
        assert min(found.histogram) >= 0
        assert found.name.isprintable()
        assert len(found.name) <= 64
    elif isinstance(found, Counts):
        assert sum(found.images) == 10
        assert all(
            right <= images
            for row in found.correct
            for right, images in zip(row, found.images, strict=True)
        )
    else:
        assert found.shape == (12, 3)
        assert found.isfinite().all()
