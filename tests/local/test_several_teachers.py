"""A federation whose clients train several teachers each."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fakes import tiny_config
from federation import assert_full, failing, spoiled, start

from fedistill import client_app, pipeline, worker
from fedistill.config import Config
from fedistill.shares import Share
from fedistill.teacher import Committee

NARROW = {"name": "convnet", "depth": 2, "width": 4}
SHALLOW = {"name": "convnet", "depth": 1, "width": 4}


def two_backbones(clients: int = 2, ipc: int = 1) -> Config:
    return tiny_config(
        teacher={"backbones": [NARROW, SHALLOW]},
        partition={"clients": clients},
        distill={"ipc": [ipc]},
    )


def test_flower_and_the_page_without_it_make_the_same_set():
    config = tiny_config(teacher={"count": 2}, model=[NARROW, SHALLOW])
    strategy, _ = start(config)
    assert_full(strategy.sets[1], 1)
    assert all(isinstance(net, Committee) for net in strategy.teachers.values())
    assert [len(share.teachers) for share in strategy.shares.values()] == [2, 2]
    assert pipeline.run(config)[1].synthetic.sha256 == strategy.sets[1].sha256
    alone, _ = start(replace(config, teacher=replace(config.teacher, count=1)))
    assert alone.sets[1].sha256 != strategy.sets[1].sha256


@pytest.mark.parametrize(
    "lie",
    [
        lambda states: states[:1],
        lambda states: (*states, states[0]),
        lambda states: states[::-1],
        lambda states: (),
    ],
    ids=["one short", "one too many", "in another order", "none"],
)
def test_other_teachers_than_were_asked_for_are_refused_and_made_up_for(
    lie: Callable[[tuple[object, ...]], tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
):
    def change(share: Share, attempt: int) -> Share:
        return replace(share, teachers=lie(share.teachers)) if share.partition_id else share  # type: ignore[arg-type]

    spoiled(monkeypatch, change)
    strategy, _ = start(two_backbones())
    assert list(strategy.failures) == [1]
    assert "its reply was refused" in strategy.failures[1]
    assert_full(strategy.sets[1], 1)


def test_a_client_that_is_asked_again_trains_nothing_again(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, 2)
    trained: list[int] = []
    squeeze = worker.squeeze

    def counting(*args: object, **options: object) -> object:
        trained.append(options["path"][1])  # type: ignore[index]
        return squeeze(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "squeeze", counting)
    first: dict[int, object] = {}
    make_share = client_app.make_share

    def watched(*args: object, **options: object) -> Share:
        share = make_share(*args, **options)  # type: ignore[arg-type]
        before = first.setdefault(share.partition_id, share.teachers)
        for old, new in zip(before, share.teachers, strict=True):  # type: ignore[call-overload]
            assert all(torch.equal(old[name], new[name]) for name in old)
        return share

    monkeypatch.setattr(client_app, "make_share", watched)
    strategy, _ = start(two_backbones(clients=3, ipc=3))
    assert_full(strategy.sets[3], 3)
    assert set(strategy.sets[3].clients.tolist()) == {0, 1}
    assert sorted(trained) == [0, 0, 1, 1, 2, 2]
    assert len({image.numpy().tobytes() for image in strategy.sets[3].images}) == 30
