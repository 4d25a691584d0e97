"""Every kind of reply: a good one, who reads it, and how to change it."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from fakes import CONVNET, tiny_config, tiny_set, tiny_spec, tiny_teacher
from flwr.app import Array, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedistill import wire, wire_evaluate, wire_labels
from fedistill.counts import Counts
from fedistill.crops import ViewOptions
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
    curves={"matching/ipc-10": [(0, 2.0), (7, 0.5)], "information/real-1": [(3, -0.25)]},
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
    """Pass records through the bytes that Flower sends."""
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
