"""Labels from home: requests and answers arrive bit for bit, or are refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import tiny_config, tiny_set, tiny_spec
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedistill import wire, wire_labels
from fedistill.crops import ViewOptions
from fedistill.errors import WireError
from fedistill.seeding import generator
from fedistill.wire_labels import LabelRequest

OPTIONS = ViewOptions(scale=(0.25, 1.0), shift=1, flip=True, tiles=2, tile_share=0.5, mix="cutmix")
MINE = torch.rand(5, 6, generator=generator(0, "mine")) < 0.4
REQUEST = LabelRequest(
    config=tiny_config(relabel={"at": "clients"}),
    spec=tiny_spec(),
    partition_id=3,
    images=tiny_set().images,
    seed=2**63 - 1,
    options=OPTIONS,
    mine=MINE,
)
LOGITS = torch.randn(int(MINE.sum()), 3, generator=generator(0, "logits")).half()


def sent(content: RecordDict) -> RecordDict:
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


@given(views=st.integers(1, 9), count=st.integers(1, 9), number=st.integers(0, 99))
def test_any_request_arrives_bit_for_bit(views: int, count: int, number: int):
    stream = generator(number, "any request")
    mine = torch.rand(views, count, generator=stream) < 0.5
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=stream, dtype=torch.uint8)
    request = replace(REQUEST, images=images, mine=mine)
    found = wire_labels.decode_label_request(sent(wire_labels.encode_label_request(request)))
    assert torch.equal(found.images, images)
    assert torch.equal(found.mine, mine)
    assert found.mine.dtype == torch.bool
    assert replace(found, images=images, mine=mine) == request


def test_answers_arrive_bit_for_bit():
    content = sent(wire_labels.encode_answers(3, LOGITS))
    found = wire_labels.decode_answers(content, REQUEST)
    assert found.dtype == torch.float16
    assert torch.equal(found, LOGITS)


def test_a_view_costs_a_bit_down_and_half_precision_up():
    large = replace(REQUEST, mine=torch.ones(805, 6, dtype=torch.bool))
    small = replace(REQUEST, mine=torch.ones(5, 6, dtype=torch.bool))
    sizes = [wire.size(wire_labels.encode_label_request(it)) for it in (small, large)]
    assert 600 <= sizes[1] - sizes[0] <= 610
    up = [wire.size(wire_labels.encode_answers(3, LOGITS.repeat(n, 1))) for n in (1, 101)]
    assert 0 <= up[1] - up[0] - 2 * LOGITS.numel() * 100 <= 10


def answers(logits: object = LOGITS, partition_id: object = 3) -> RecordDict:
    array = logits if isinstance(logits, Array) else Array(np.asarray(logits))
    return RecordDict(
        {
            "labels": ArrayRecord({"logits": array}),
            "metrics": MetricRecord({"partition-id": partition_id}),  # type: ignore[dict-item]
        }
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RecordDict({}), "no metric record"),
        (RecordDict({"metrics": MetricRecord({"partition-id": 3})}), "no array 'logits'"),
        (answers(partition_id=2), "of partition 2, not 3"),
        (answers(partition_id=3.5), "expected an integer"),
        (answers(LOGITS[1:]), "expected"),
        (answers(LOGITS[:, :2]), "expected"),
        (answers(LOGITS.flatten()), "expected"),
        (answers(LOGITS.float()), "float32"),
        (answers(LOGITS.view(torch.int16)), "int16"),
        (answers(torch.full_like(LOGITS, float("nan"))), "not finite"),
        (answers(torch.full_like(LOGITS, float("-inf"))), "not finite"),
        (answers(Array("float16", (2, 3), "numpy.ndarray", b"garbage")), "cannot be read"),
    ],
)
def test_answers_that_break_the_contract_are_refused(content: RecordDict, said: str):
    with pytest.raises(WireError, match=said):
        wire_labels.decode_answers(sent(content), REQUEST)


def without(record: str) -> Callable[[RecordDict], None]:
    return lambda content: content.pop(record) and None


def options(text: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.config_records["request"]["options-json"] = text

    return change


def array(name: str, value: torch.Tensor) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.array_records["set"][name] = Array(value.numpy())

    return change


def views(count: int) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.config_records["request"]["views"] = count

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        without("request"),
        without("set"),
        options("{"),
        options("[]"),
        options('{"zoom": 3}'),
        array("images", torch.zeros(6, 3, 8, 8, dtype=torch.uint8)),
        array("images", torch.zeros(6, 1, 8, 8)),
        array("images", torch.zeros(6, dtype=torch.uint8)),
        array("mine", torch.zeros(5, dtype=torch.uint8)),
        views(0),
        views(-5),
        views(2**60),
    ],
)
def test_a_request_that_breaks_the_contract_is_refused(spoil: Callable[[RecordDict], None]):
    content = wire_labels.encode_label_request(REQUEST)
    assert isinstance(content["request"], ConfigRecord)
    spoil(content)
    with pytest.raises(WireError):
        wire_labels.decode_label_request(sent(content))
