"""A federation in this process for tests: real ServerApp, real ClientApp, real messages."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes import CPU
from flwr.serverapp.strategy import Result

from fedistill import client_app, data
from fedistill.config import Config
from fedistill.sets import SyntheticSet
from fedistill.shares import Share
from strategies import local, server_app
from strategies.base import FedDistill

MakeShare = Callable[..., Share]


def start(
    config: Config, grid: Callable[..., local.LocalGrid] = local.LocalGrid
) -> tuple[FedDistill, Result]:
    """Run the strategy alone, without evaluation."""
    loaded = data.load(config.data, config.seed)
    kind = server_app.choose_strategy(config)
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
