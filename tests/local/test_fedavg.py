"""FedAvg by Flower's strategy computes what a plain loop over the shards does."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fakes import CPU, tiny_config
from federation import Backwards
from flwr.app import Error, Message
from torch import Tensor

from fedistill import client_app, data, partition, training, wire, wire_fedavg, worker
from fedistill.config import Config
from fedistill.errors import WorkerDied
from fedistill.evaluation import Evaluator
from fedistill.models import build
from fedistill.store import VARIABLE
from fedistill.teacher import squeeze
from strategies import fedavg, local
from strategies.fedavg import Found

State = dict[str, npt.NDArray[Any]]
ROUNDS, EPOCHS, CLIENTS = 2, 2, 3
FLOAT32 = torch.float32


def settings(**sections: Any) -> Config:
    """Three clients that hold unlike numbers of images."""
    return tiny_config(
        **{
            "baselines": ["fedavg"],
            "fedavg": {"rounds": ROUNDS, "epochs": EPOCHS},
            "partition": {"name": "quantity", "clients": CLIENTS, "alpha": 1.0},
            **sections,
        }
    )


CONFIG = settings()


class Played:
    """A game of FedAvg: what was found, and the average that was tested after each round."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        config: Config = CONFIG,
        grid: Callable[..., local.LocalGrid] = local.LocalGrid,
        first_node: int = 0,
    ) -> None:
        self.averages: list[State] = []
        self.told: list[tuple[str, int, int, str]] = []

        def accuracy(model: torch.nn.Module, *rest: Any) -> float:
            self.averages.append({k: v.numpy().copy() for k, v in model.state_dict().items()})
            return training.accuracy(model, *rest)

        monkeypatch.setattr(fedavg, "accuracy", accuracy)
        loaded = data.load(config.data, config.seed)
        judge = Evaluator(
            config=config, spec=loaded.spec, test=loaded.test, device=CPU, dtype=FLOAT32
        )
        with local.task_identity():
            self.grid = grid(client_app.app, first_node + CLIENTS, {})
            nodes = dict(enumerate([*self.grid.get_node_ids()][first_node:]))
            self.found: Found = fedavg.run(
                self.grid, nodes, judge, lambda *event: self.told.append(event)
            )


def reference(config: Config, absent: Mapping[int, int] | None = None) -> list[State]:
    """Average by NumPy after local training with the same seeds.

    Args:
        config: of the experiment.
        absent: the client that is missing from a round.
    """
    loaded = data.load(config.data, config.seed)
    spec, model = loaded.spec, config.teacher_model(0)
    labels = loaded.train.labels
    parts = partition.split(labels, spec.num_classes, config.partition, config.seed).indices
    sizes = {len(index) for index in parts}
    assert len(sizes) == CLIENTS, "unlike weights are the point"
    start = build(model, spec, config.seed, "fedavg", "weights").state_dict()
    recipe = type(config.teacher)(epochs=EPOCHS, batch_size=32)
    found = []
    for server_round in range(1, ROUNDS + 1):
        here = [n for n in range(CLIENTS) if (absent or {}).get(server_round) != n]
        states = [
            squeeze(
                loaded.train.select(parts[n]), spec, model, recipe, seed=config.seed,
                path=("fedavg", n, server_round), start=start, device=CPU, dtype=FLOAT32,
            )[0].state_dict()
            for n in here
        ]  # fmt: skip
        samples = np.array([len(parts[n]) for n in here], np.float64)
        average = {}
        for name in start:
            stacked = np.stack([np.asarray(state[name]) for state in states], -1)
            average[name] = np.asarray((stacked * samples).sum(-1) / samples.sum())
        own = {name: tensor.dtype for name, tensor in start.items()}
        start = {
            name: torch.tensor(value if own[name].is_floating_point else value.round()).to(
                own[name]
            )
            for name, value in average.items()
        }
        found.append({name: tensor.numpy() for name, tensor in start.items()})
    return found


def assert_close(states: list[State], expected: list[State]) -> None:
    assert len(states) == len(expected)
    for state, other in zip(states, expected, strict=True):
        assert state.keys() == other.keys()
        for name, array in state.items():
            np.testing.assert_allclose(array, other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def assert_equal(states: list[State], expected: list[State]) -> None:
    assert len(states) == len(expected) == ROUNDS
    for state, other in zip(states, expected, strict=True):
        assert all(np.array_equal(state[name], other[name]) for name in state)


@pytest.fixture(scope="module")
def base() -> Played:
    with pytest.MonkeyPatch.context() as patch:
        return Played(patch)


def test_the_average_is_that_of_a_plain_loop(base: Played):
    assert_close(base.averages, reference(CONFIG))


def test_batch_norm_is_averaged_like_weights_and_its_counter_stays_whole(base: Played):
    expected = reference(CONFIG)
    names = [name for name in base.averages[0] if "running_" in name]
    assert names
    for state, other in zip(base.averages, expected, strict=True):
        for name in names:
            np.testing.assert_allclose(state[name], other[name], rtol=1e-4, atol=1e-5)
        counters = [name for name in state if name.endswith("num_batches_tracked")]
        assert counters
        for name in counters:
            assert state[name].dtype == np.int64
            assert state[name] == other[name] > 0


def test_the_first_and_the_last_round_have_a_row(base: Played):
    found = base.found
    assert [number for number, _ in found.top1] == [1, 2]
    assert list(found.scores) == list(found.notes) == ["fedavg_1", "fedavg_2"]
    for (_, top1), score in zip(found.top1, found.scores.values(), strict=True):
        assert score.top1 == [top1]
    (first,) = found.scores["fedavg_1"].curves
    (last,) = found.scores["fedavg_2"].curves
    assert last[:1] == first
    assert [number for number, _ in last] == [1, 2]
    assert all(0 < loss < 4 for _, loss in last)
    alone = settings(fedavg={"rounds": 1})
    assert alone.fedavg.epochs == alone.teacher.epochs
    with pytest.MonkeyPatch.context() as patch:
        assert list(Played(patch, alone).found.scores) == ["fedavg_1"]


def test_the_seed_decides_every_bit(base: Played, monkeypatch: pytest.MonkeyPatch):
    assert_equal(Played(monkeypatch).averages, base.averages)
    other = Played(monkeypatch, settings(seed=1)).averages
    assert not np.array_equal(other[0]["classifier.weight"], base.averages[0]["classifier.weight"])


def test_neither_the_order_of_replies_nor_other_nodes_matter(
    base: Played, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []

    class Counting(Backwards):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            asked.extend(message.metadata.dst_node_id for message in messages)
            return super().push_messages(messages)

    played = Played(monkeypatch, grid=Counting, first_node=2)
    assert asked == [102, 103, 104] * ROUNDS
    assert_equal(played.averages, base.averages)


def failing(monkeypatch: pytest.MonkeyPatch, *broken: tuple[int, int]) -> None:
    """Let clients fail, each named with its round."""
    real = client_app.train_from

    def train_from(*args: Any, **options: Any) -> Any:
        if (options["partition_id"], options["server_round"]) in broken:
            raise MemoryError("out of memory")
        return real(*args, **options)

    monkeypatch.setattr(client_app, "train_from", train_from)


def test_who_fails_is_left_out_of_that_round_alone(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, (1, 1))
    played = Played(monkeypatch)
    assert_close(played.averages, reference(CONFIG, {1: 1}))
    for note in played.found.notes.values():
        assert note["absent_clients"] == {"1": [1]}


def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(fedavg, "log", lambda _, text, *args: found.append(text % args))
    return found


def test_too_few_clients_cost_the_later_rows_and_not_the_run(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, (0, 2), (1, 2))
    warnings = warned(monkeypatch)
    played = Played(monkeypatch, settings(federation={"min_clients": 2}))
    assert list(played.found.scores) == ["fedavg_1"]
    assert len(warnings) == 1
    assert "1 of 3 clients" in warnings[0]
    assert played.told[-1] == ("fedavg", ROUNDS, ROUNDS, "ended early")


def test_a_dead_worker_ends_more_than_the_rival(monkeypatch: pytest.MonkeyPatch):
    """Nothing that its simulation says can be relied on: a sweep starts another."""

    class Dying(local.LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [Message(Error(0, "gone"), reply_to=self._sent.pop(key)) for key in message_ids]

    with pytest.raises(WorkerDied, match="gone"):
        Played(monkeypatch, grid=Dying)


def test_without_any_client_there_is_no_row(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, (0, 1), (1, 1), (2, 1))
    warnings = warned(monkeypatch)
    assert Played(monkeypatch).found.scores == {}
    assert "out of memory" in warnings[0]


def a_number_that_is_none(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["classifier.bias"][0] = float("inf")
    return state


def another_shape(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "classifier.bias": state["classifier.bias"][1:]}


@pytest.mark.parametrize("lie", [a_number_that_is_none, another_shape])
def test_an_update_that_is_none_is_refused(
    lie: Callable[[dict[str, Tensor]], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
):
    real = client_app.train_from

    def train_from(*args: Any, **options: Any) -> Any:
        state, loss = real(*args, **options)
        if (options["partition_id"], options["server_round"]) == (2, 2):
            state = lie({name: tensor.clone() for name, tensor in state.items()})
        return state, loss

    monkeypatch.setattr(client_app, "train_from", train_from)
    played = Played(monkeypatch)
    assert_close(played.averages, reference(CONFIG, {2: 2}))
    assert "absent_clients" not in played.found.notes["fedavg_1"]
    assert played.found.notes["fedavg_2"]["absent_clients"] == {"2": [2]}


def test_the_bytes_are_those_of_the_messages_up_to_a_round(monkeypatch: pytest.MonkeyPatch):
    down: list[int] = []
    up: list[int] = []

    class Weighing(local.LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            assert {message.metadata.message_type for message in messages} == {wire_fedavg.TRAIN}
            down.extend(wire.size(message.content) for message in messages)
            return super().push_messages(messages)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            up.extend(wire.size(reply.content) for reply in replies)
            return replies

    notes = Played(monkeypatch, grid=Weighing).found.notes
    assert len(up) == len(down) == ROUNDS * CLIENTS
    for name, messages in ("fedavg_1", CLIENTS), ("fedavg_2", ROUNDS * CLIENTS):
        assert notes[name]["bytes"] == {"up": sum(up[:messages]), "down": sum(down[:messages])}


def test_progress_is_told_by_the_server(base: Played):
    assert [event[:3] for event in base.told] == [("fedavg", n, ROUNDS) for n in (0, 1, 2)]


def test_a_second_game_finds_its_rounds_in_the_store(
    base: Played, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "store"))
    first = Played(monkeypatch)
    monkeypatch.setattr(worker, "squeeze", None)  # would raise, and all would be absent
    second = Played(monkeypatch)
    assert_equal(first.averages, base.averages)
    assert_equal(second.averages, base.averages)
    assert second.found.notes == first.found.notes
