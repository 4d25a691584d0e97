"""Clients that fail, lie or are silent: named, left out, and made up for."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import tiny_config, tiny_tree
from federation import Silent, assert_full, failing, run, spoiled, start
from flwr.app import Message, RecordDict

from fedistill import config_file, planning, results, wire
from fedistill.config import Config
from fedistill.device import Device, Holding
from fedistill.errors import ClientsFailed
from fedistill.images import DataSpec
from fedistill.shares import Share


def test_a_client_that_raises_is_named_and_its_slots_are_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    failing(monkeypatch, 1)
    found = run(tmp_path / "run", partition={"clients": 3}, distill={"ipc": [2, 5]})
    assert found.result["absent_clients"] == [1]
    for ipc in (2, 5):
        synthetic = found.set_of(ipc)
        assert_full(synthetic, ipc)
        assert set(synthetic.clients.tolist()) == {0, 2}
        assert synthetic.card["provenance"]["absent_clients"] == [1]
    top1 = found.result["teachers"]["top1"]
    assert [value is None for value in top1] == [False, True, False]
    stages = found.result["bytes"]["per_client"]
    assert stages["1"]["stages"][wire.DISTILL]["up"] == 0
    assert stages["1"]["stages"][wire.DISTILL]["down"] > 0


def test_images_made_in_a_second_round_differ_from_those_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
):
    failing(monkeypatch, 0)
    strategy, _ = start(tiny_config(partition={"clients": 2}, distill={"ipc": [4]}))
    synthetic = strategy.sets[4]
    assert_full(synthetic, 4)
    assert set(synthetic.clients.tolist()) == {1}
    assert len({image.numpy().tobytes() for image in synthetic.images}) == 40


@pytest.mark.parametrize("name", ["dm", "mibdc"])
def test_every_size_of_a_method_that_optimises_jointly_is_repaired(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    failing(monkeypatch, 1)
    tree = tiny_tree(partition={"clients": 3})
    tree["distill"] = {"name": name, "ipc": [1, 4], "iterations": 2, "width": 4}
    hashes = set()
    for _ in range(2):
        strategy, _ = start(config_file.from_dict(tree))
        for ipc in (1, 4):
            assert_full(strategy.sets[ipc], ipc)
            assert 1 not in strategy.sets[ipc].clients
        hashes.add(tuple(it.sha256 for it in strategy.sets.values()))
    assert len(hashes) == 1


def test_a_repaired_run_is_repeatable(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, 1)
    config = tiny_config(partition={"clients": 3}, distill={"ipc": [3]})
    hashes = {start(config)[0].sets[3].sha256 for _ in range(2)}
    assert len(hashes) == 1


def test_a_client_that_falls_silent_in_the_second_round_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
):
    failing(monkeypatch, 2)
    asked: list[wire.DistillRequest] = []
    encode = wire.encode_distill_request

    def noted(request: wire.DistillRequest) -> RecordDict:
        asked.append(request)
        return encode(request)

    monkeypatch.setattr(wire, "encode_distill_request", noted)

    class SecondTime(Silent):
        """Client 1 never answers a second request to distil."""

        rounds = 0

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            self.rounds += messages[0].metadata.message_type == wire.DISTILL
            assert self.rounds < 5, "the same client is asked again and again"
            return super().push_messages(messages)

        def is_lost(self, message: Message) -> bool:
            return self.rounds == 2 and message.metadata.dst_node_id == 101

    config = tiny_config(partition={"clients": 3}, distill={"ipc": [3]})
    strategy, _ = start(config, SecondTime)
    assert strategy.failures.keys() == {1, 2}
    assert "no answer" in strategy.failures[1]
    assert_full(strategy.sets[3], 3)
    assert set(strategy.sets[3].clients.tolist()) == {0}
    first, second, third = (request for request in asked if request.partition_id == 0)
    assert (first.made, first.attempt) == ((), 0)
    assert (second.made, second.attempt) == ((tuple(first.counts),), 1)
    assert (third.made, third.attempt) == ((tuple(first.counts), tuple(second.counts)), 2)
    assert [sum(column) for column in zip(*third.made, third.counts, strict=True)] == [3] * 10


def wrong_teacher(share: Share) -> Share:
    return replace(share, teachers=({"weight": torch.zeros(3)},))


def nan_teacher(share: Share) -> Share:
    state = {name: tensor.clone() for name, tensor in share.teachers[0].items()}
    state["classifier.bias"][0] = float("nan")
    return replace(share, teachers=(state,))


@pytest.mark.parametrize(
    "lie",
    [
        lambda share: replace(share, teachers=()),
        lambda share: replace(share, images=share.images[1:]),
        lambda share: replace(share, images=share.images.float()),
        lambda share: replace(share, partition_id=0),
        lambda share: replace(share, seconds={}),
        wrong_teacher,
        nan_teacher,
    ],
    ids=["no teacher", "an image short", "floats", "another's id", "no seconds", "wrong weights",
         "nan"],
)  # fmt: skip
def test_a_share_that_breaks_the_contract_is_refused_and_made_up_for(
    lie: Callable[[Share], Share], monkeypatch: pytest.MonkeyPatch
):
    spoiled(monkeypatch, lambda share, _: lie(share) if share.partition_id == 1 else share)
    strategy, _ = start(tiny_config())
    assert list(strategy.failures) == [1]
    assert list(strategy.teachers) == [0]
    assert_full(strategy.sets[1], 1)


def test_too_few_clients_end_the_run_with_the_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    failing(monkeypatch, 0, 2)
    with pytest.raises(ClientsFailed) as raised:
        run(tmp_path / "run", partition={"clients": 3}, federation={"min_clients": 2})
    for part in ("1 of 3 clients", "min_clients is 2", "client 0", "client 2", "out of memory"):
        assert part in str(raised.value)
    failure = results.read_failure(tmp_path / "run")
    assert failure is not None
    assert (failure["error"], failure["user_error"]) == ("ClientsFailed", False)
    assert failure["message"] == str(raised.value)
    assert not (tmp_path / "run" / "result.json").exists()


def test_no_client_left_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, 0, 1)
    with pytest.raises(ClientsFailed, match="0 of 2 clients"):
        start(tiny_config())


def test_a_class_held_by_failed_clients_alone_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, 0)
    split = {"name": "pathological", "clients": 5, "classes_per_client": 2}
    with pytest.raises(ClientsFailed, match=r"is held by no client.*failed: "):
        start(tiny_config(partition=split))


def test_a_failed_description_leaves_the_client_out(monkeypatch: pytest.MonkeyPatch):
    images = Device.images

    def broken(self: Device, config: Config, spec: DataSpec, partition_id: int) -> Holding:
        if partition_id == 0:
            raise OSError("the disk is gone")
        return images(self, config, spec, partition_id)

    monkeypatch.setattr(Device, "images", broken)
    strategy, _ = start(tiny_config())
    assert "the disk is gone" in strategy.failures[0]
    assert_full(strategy.sets[1], 1)
    assert strategy.descriptions.keys() == {1}


def test_a_share_of_the_clients_drops_out_and_the_set_is_full():
    config = tiny_config(
        partition={"clients": 5}, distill={"ipc": [2]}, federation={"dropout": 0.4}
    )
    strategy, _ = start(config)
    assert len(strategy.failures) == 2
    assert all("federation.dropout" in why for why in strategy.failures.values())
    assert_full(strategy.sets[2], 2)
    again, _ = start(config)
    assert again.failures.keys() == strategy.failures.keys()
    drawn = {planning.dropped(replace(config, seed=seed)) for seed in range(8)}
    assert frozenset(strategy.failures) in drawn
    assert len(drawn) > 2


def test_a_teacher_whose_labels_overflow_labels_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its answer to a plain image is finite, and its images are good: those stay."""

    def loud(share: Share, attempt: int) -> Share:
        if share.partition_id != 1:
            return share
        state = dict(share.teachers[0])
        state["classifier.weight"] = state["classifier.weight"] * 1e8
        return replace(share, teachers=(state,))

    spoiled(monkeypatch, loud)
    found = run(tmp_path / "run", partition={"clients": 3}, distill={"ipc": [2, 5]})
    assert found.result["absent_clients"] == []
    assert found.result["absent_labellers"] == [1]
    for ipc in (2, 5):
        synthetic = found.set_of(ipc)
        assert_full(synthetic, ipc)
        assert 1 in synthetic.clients
        assert synthetic.soft_labels is not None
        assert synthetic.soft_labels.logits.isfinite().all()


def test_teachers_whose_answers_overflow_are_refused(monkeypatch: pytest.MonkeyPatch):
    def huge(share: Share, attempt: int) -> Share:
        if share.partition_id != 1:
            return share
        state = {
            name: tensor * 1e30 if tensor.is_floating_point() else tensor
            for name, tensor in share.teachers[0].items()
        }
        return replace(share, teachers=(state,))

    spoiled(monkeypatch, huge)
    strategy, _ = start(tiny_config(partition={"clients": 3}, distill={"ipc": [2]}))
    assert "not finite" in strategy.failures[1]
    assert_full(strategy.sets[2], 2)
