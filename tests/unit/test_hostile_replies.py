"""What a hostile device may answer: each kind is refused with a WireError, and takes no memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import tiny_config
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from replies import (
    ASKED,
    BIAS,
    IMAGES,
    MANY,
    REPLIES,
    SHARE,
    TEACHER,
    VARIANCE,
    Change,
    bomb,
    drop,
    header,
    put,
    put_array,
    raw_header,
    replaced,
    sent,
    teacher,
)

from fedistill import records, wire
from fedistill.distillers.base import Trace
from fedistill.errors import WireError
from fedistill.models.build import names

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
        "a class of two lines": put("device", "unknown-classes", ["x\nthe run failed: {}"]),
        "a class that steers the terminal": put("device", "unknown-classes", ["\x1b[2Jx"]),
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
