"""A client: several teachers, later requests, several sizes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from clients import CONFIG, COUNTS, DM, NARROW, SHALLOW, SHARD, SPEC, TWO, assert_same, small, work
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedistill import wire, worker
from fedistill.distillers import dm
from fedistill.distillers.sre2l import SRe2L
from fedistill.worker import restore_teachers


def test_each_teacher_has_its_own_start_and_the_first_is_the_only_one_of_count_1():
    one, two = work(), work(TWO)
    assert [len(share.teachers) for share in (one, two)] == [1, 2]
    first, second = two.teachers
    for name, tensor in one.teachers[0].items():
        assert torch.equal(tensor, first[name])
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert two.teacher_curve == one.teacher_curve


def test_backbones_are_trained_in_turn_by_every_client():
    config = small(teacher={"count": 2, "backbones": [NARROW, SHALLOW]}, model=[NARROW, NARROW])
    for partition_id in (0, 1):
        depths = [model.depth for model in config.teachers_of(partition_id)]
        assert depths == [2, 1, 2, 1]
        share = work(config, partition_id=partition_id)
        sizes = [sum(t.numel() for t in state.values()) for state in share.teachers]
        assert sizes[0] == sizes[2] != sizes[1] == sizes[3]
        restore_teachers(config, SPEC, partition_id, share.teachers)


def test_without_backbones_each_client_trains_its_own_model():
    config = small(teacher={"count": 2}, model=[NARROW, SHALLOW])
    depths = [[model.depth for model in config.teachers_of(number)] for number in range(3)]
    assert depths == [[2, 2], [1, 1], [2, 2]]


def test_the_answer_of_several_teachers_is_the_mean_of_their_logits():
    states = work(TWO).teachers
    images = SPEC.normalise(SHARD.images)
    together = restore_teachers(TWO, SPEC, 0, states)
    alone = [restore_teachers(CONFIG, SPEC, 0, [state]) for state in states]
    expected = (alone[0](images) + alone[1](images)) / 2
    torch.testing.assert_close(together(images), expected)
    assert not any(module.training for module in together.modules())
    assert not any(parameter.requires_grad for parameter in together.parameters())


MIXED = small(teacher={"backbones": [NARROW, SHALLOW]})


@pytest.mark.parametrize(
    "change",
    [lambda s: s[:1], lambda s: (*s, s[0]), lambda s: (), lambda s: s[::-1]],
    ids=["one short", "one too many", "none", "in another order"],
)
def test_other_teachers_than_the_config_names_are_refused(change: Callable[[Any], Any]):
    states = change(work(MIXED).teachers)
    with pytest.raises(RuntimeError):
        restore_teachers(MIXED, SPEC, 0, states)
    if states:
        with pytest.raises(RuntimeError):
            work(MIXED, teacher_states=states)


def test_a_share_with_several_teachers_arrives_whole():
    share = work(MIXED)
    proto = recorddict_to_proto(wire.encode_share(share))
    content = recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))
    request = wire.DistillRequest(config=MIXED, spec=SPEC, partition_id=0, counts=list(COUNTS))
    assert_same(wire.decode_share(content, request), share)


def test_what_came_from_the_store_is_told_to_the_server():
    request = wire.DistillRequest(config=CONFIG, spec=SPEC, partition_id=0, counts=list(COUNTS))
    share = work()
    for stages in ((), ("squeeze",), ("recover",), ("squeeze", "recover")):
        content = wire.encode_share(replace(share, from_store=stages))
        assert wire.decode_share(content, request).from_store == stages


def test_a_second_request_takes_the_teachers_that_were_sent_back(monkeypatch: pytest.MonkeyPatch):
    first = work(TWO)
    monkeypatch.setattr(worker, "squeeze", None)
    second = work(TWO, attempt=1, made=[COUNTS], teacher_states=first.teachers)
    assert second.seconds["squeeze"] == 0
    assert second.teacher_curve == ()
    assert_same(replace(second, images=first.images, teacher_curve=first.teacher_curve,
                        recover_curve=first.recover_curve), first)  # fmt: skip
    for old, new in zip(first.images, second.images, strict=True):
        assert not torch.equal(old, new)


def test_the_distiller_learns_what_was_made_before(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, Sequence[Sequence[int]]]] = []
    real = SRe2L.distill

    def distill(self: SRe2L, task: Any) -> Any:
        seen.append((task.attempt, task.made))
        assert len(task.teachers) == len(task.models) == 2
        return real(self, task)

    monkeypatch.setattr(SRe2L, "distill", distill)
    share = work(TWO)
    work(TWO, attempt=1, made=[share.counts], teacher_states=share.teachers)
    assert seen == [(0, []), (1, [COUNTS])]


def test_a_later_request_tells_each_size_what_it_has(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Sequence[int], Sequence[Sequence[int]]]] = []
    real = dm.DM.distill

    def distill(self: dm.DM, task: Any) -> Any:
        seen.append((task.counts, task.made))
        return real(self, task)

    monkeypatch.setattr(dm.DM, "distill", distill)
    work(DM, counts=(1, 0, 0, 2, 0, 0), attempt=1, made=[(0, 1, 1, 0, 2, 2)])
    assert seen == [((1, 0, 0), [(0, 1, 1)]), ((2, 0, 0), [(0, 2, 2)])]


def test_progress_over_several_sizes_rises_to_its_end():
    events: list[tuple[int, int]] = []

    def report(stage: str, done: int, total: int, note: str) -> None:
        if stage == "recover":
            events.append((done, total))

    work(DM, counts=(1, 0, 0, 2, 0, 0), report=report)
    assert events == [(1, 4), (2, 4), (3, 4), (4, 4)]
