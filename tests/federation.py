"""A federation in this process for tests: real ServerApp, real ClientApp, real messages."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import CPU, tiny_config
from flwr.app import Error, Message
from flwr.serverapp.strategy import Result

from fedistill import client_app, data, runner
from fedistill.config import Config
from fedistill.sets import SyntheticSet
from fedistill.shares import Share
from strategies import experiment, local
from strategies.base import FedDistill

MakeShare = Callable[..., Share]


class Backwards(local.LocalGrid):
    """A grid whose last node answers first."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        last = next(reversed(self._sent), None)
        return super().pull_messages([key for key in message_ids if key == last])


class Silent(local.LocalGrid):
    """A grid where nobody answers the messages that `is_lost` picks."""

    @abstractmethod
    def is_lost(self, message: Message) -> bool:
        """Whether nobody answers this one."""

    def _answer(self, message: Message) -> Message:
        if self.is_lost(message):  # as a SuperLink says when the time to live has ended
            return Message(Error(3, "the message has expired"), reply_to=message)
        return super()._answer(message)


@dataclass(frozen=True)
class Run:
    """What a whole run has left."""

    config: Config
    folder: Path
    result: dict[str, Any]

    def set_of(self, ipc: int) -> SyntheticSet:
        return SyntheticSet.load(self.folder / "sets" / f"ipc-{ipc}")


def run(folder: Path, **sections: Any) -> Run:
    """Run the tiny config with some sections changed, evaluation and files included."""
    config = tiny_config(**sections)
    return Run(config, folder, runner.run(config, folder, "local"))


def start(
    config: Config, grid: Callable[..., local.LocalGrid] = local.LocalGrid
) -> tuple[FedDistill, Result]:
    """Run the strategy alone, without evaluation."""
    loaded = data.load(config.data, config.seed)
    kind = experiment.choose_strategy(config)
    strategy = kind(config, loaded.spec, device=CPU, dtype=torch.float32)
    with local.task_identity():
        nodes = grid(client_app.app, config.partition.clients, {})
        return strategy, strategy.start(nodes)


def spoiled(monkeypatch: pytest.MonkeyPatch, change: Callable[[Share, int], Share]) -> None:
    """Let every client's share pass through `change`, with the number of the request."""
    real: MakeShare = client_app.make_share

    def make_share(*args: Any, **options: Any) -> Share:
        return change(real(*args, **options), options["attempt"])

    monkeypatch.setattr(client_app, "make_share", make_share)


def failing(monkeypatch: pytest.MonkeyPatch, *broken: int) -> None:
    def fail(share: Share, attempt: int) -> Share:
        if share.partition_id in broken:
            raise MemoryError(f"client {share.partition_id} ran out of memory")
        return share

    spoiled(monkeypatch, fail)


def assert_full(synthetic: SyntheticSet, ipc: int) -> None:
    assert synthetic.as_image_set().histogram(synthetic.spec.num_classes) == [ipc] * 10
