"""Tests at home: counts add up to the accuracy on all images, requests arrive, or are refused."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CONVNET, CPU, tiny_config, tiny_images, tiny_spec, tiny_teacher
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st

from fedistill import client, states, training, wire_evaluate
from fedistill.counts import Counts, count, pool
from fedistill.errors import ClientsFailed, WireError
from fedistill.images import ImageSet
from fedistill.wire import Description
from fedistill.wire_evaluate import EvaluateRequest
from strategies.exchange import Exchange
from strategies.tested_at_home import TestersAtHome

SPEC = tiny_spec()
STUDENTS = tuple(tiny_teacher(seed).state_dict() for seed in (0, 1))
REQUEST = EvaluateRequest(
    config=tiny_config(evaluate={"at": "clients"}),
    spec=SPEC,
    partition_id=2,
    model=CONVNET,
    students=STUDENTS,
)
NOTHING = ImageSet(torch.empty(0, 1, 8, 8, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def sent(content: RecordDict) -> RecordDict:
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def test_a_request_arrives_whole():
    found = wire_evaluate.decode_evaluate_request(
        sent(wire_evaluate.encode_evaluate_request(REQUEST))
    )
    assert replace(found, students=()) == replace(REQUEST, students=())
    assert len(found.students) == 2
    for arrived, student in zip(found.students, STUDENTS, strict=True):
        assert arrived.keys() == student.keys()
        assert all(torch.equal(arrived[name], student[name]) for name in student)


def request(key: str, value: object) -> Callable[[RecordDict], object]:
    return lambda content: content.config_records["request"].update({key: value})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("student-1"),
        lambda content: content.update({"student-2": ArrayRecord()}),
        lambda content: content.pop("request"),
        lambda content: content["student-0"].pop("classifier.bias"),
        lambda content: content["student-0"].update({"more": Array(np.zeros(1))}),
        lambda content: content["student-0"].update({"classifier.bias": Array(np.zeros(3))}),
        request("students", 3),
        request("students", 0),
        request("students", 10**9),
        request("students", True),
        request("model", "{name: convnet, depth: 1}"),
        request("model", "{name: mothership}"),
        request("model", "x" * 1000),
        request("model", 3),
    ],
)
def test_a_request_that_breaks_the_contract_is_refused(change: Callable[[RecordDict], object]):
    content = wire_evaluate.encode_evaluate_request(REQUEST)
    change(content)
    with pytest.raises(WireError):
        wire_evaluate.decode_evaluate_request(sent(content))


@given(
    images=st.lists(st.integers(0, 10**6), min_size=3, max_size=3),
    shares=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=2),
)
def test_any_counts_arrive(images: list[int], shares: list[list[float]]):
    correct = tuple(
        tuple(int(part * count) for part, count in zip(row, images, strict=True)) for row in shares
    )
    counts = Counts(tuple(images), correct)
    content = sent(wire_evaluate.encode_counts(2, counts))
    assert wire_evaluate.decode_counts(content, REQUEST, sum(images)) == counts
    with pytest.raises(WireError, match="it has spoken of"):
        wire_evaluate.decode_counts(content, REQUEST, sum(images) + 1)


def test_devices_find_together_what_one_would_find_in_all_images():
    images = tiny_images(7)
    networks = [tiny_teacher(seed) for seed in (3, 4)]
    wanted = [training.accuracy(net, images, SPEC, torch.float32) for net in networks]
    parts = [images.select(torch.arange(start, len(images), 4)) for start in range(4)]
    answers = [count(networks, part, SPEC, torch.float32) for part in (*parts, NOTHING)]
    found = pool(answers)
    assert found is not None
    assert found.top1 == pytest.approx(wanted, abs=1e-5)
    assert (found.images, found.devices) == (21, 4)
    assert [sum(column) for column in zip(*(it.images for it in answers), strict=True)] == [7] * 3


def test_every_image_counts_alike():
    large, small = Counts((90, 0), ((90, 0),)), Counts((0, 10), ((0, 0),))
    found = pool([large, small])
    assert found is not None
    assert found.top1 == [90.0]
    assert pool([]) is None
    assert pool([Counts((0, 0), ((0, 0),))]) is None


def test_a_client_tests_the_students_that_it_was_sent():
    held_out = tiny_images(5)
    found = client.examine(REQUEST.config, SPEC, held_out, CONVNET, STUDENTS, device=CPU)
    networks = [tiny_teacher(seed) for seed in (0, 1)]
    assert found == count(networks, held_out, SPEC, torch.float32)
    assert found.images == (5, 5, 5)


def test_the_form_of_a_network_is_that_of_its_state_and_takes_no_memory():
    form = states.form(CONVNET, SPEC)
    assert form == states.form_of(tiny_teacher().state_dict())
    vast = replace(CONVNET, width=10**6)
    assert states.largest(states.form(vast, SPEC)) > 10**13


class Silent(Exchange):
    """An exchange whose clients answer with what they like, or do not answer."""

    def __init__(self, answers: dict[int, RecordDict]) -> None:
        super().__init__(REQUEST.config)
        self.answers = answers
        self.asked: list[list[int]] = []

    def ask(
        self,
        grid: Grid,
        message_type: str,
        contents: Mapping[int, RecordDict],
        read: Callable[[int, RecordDict], Any],
        most: Mapping[int, int],
        fail: Callable[[int, str], object] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        assert fail is not None
        assert most.keys() == contents.keys()
        self.asked.append(sorted(contents))
        torch.set_num_threads(2)  # as clients in this process may do
        for number in reversed(contents):
            try:
                yield number, read(number, self.answers[number])
            except KeyError:
                fail(number, "no answer")
            except WireError as error:
                fail(number, f"its reply was refused: {error}")


def test_who_tests_badly_is_asked_no_more_and_somebody_must_be_left():
    told = {n: Description(n, [1, 1, 1], {}, held_out=held) for n, held in enumerate((6, 6, 0, 6))}
    good = wire_evaluate.encode_counts(0, Counts((2, 2, 2), ((1, 1, 1), (2, 2, 2))))
    exchange = Silent({0: good, 1: RecordDict()})
    testers = TestersAtHome(REQUEST.config, SPEC, exchange, None, told)  # type: ignore[arg-type]
    students = [tiny_teacher(0), tiny_teacher(1)]
    found = testers.test(CONVNET, students)
    assert (found.top1, found.images, found.devices) == ([50.0, 100.0], 6, 1)
    assert "its reply was refused" in testers.failures[1]
    assert testers.failures[3] == "no answer"
    assert torch.get_num_threads() == 1
    exchange.answers = {}
    with pytest.raises(
        ClientsFailed, match="no device is left that tests students; client 3: no answer"
    ):
        testers.test(CONVNET, students)
    assert exchange.asked == [[0, 1, 3], [0]]
    nobody = {2: told[2]}
    with pytest.raises(ClientsFailed, match="no device keeps images for tests"):
        TestersAtHome(REQUEST.config, SPEC, exchange, None, nobody)  # type: ignore[arg-type]
