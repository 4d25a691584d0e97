"""Clients that fail, where every image of the set needs real images of its own."""

from typing import Any

import pytest
from fakes import tiny_tree
from federation import assert_full, failing, start

from fedistill import config_file, data, partition
from fedistill.config import Config
from fedistill.errors import ClientsFailed
from fedistill.sets import SyntheticSet

CLIENTS, FAILED = 3, 1


def config_for(*ipc: int) -> Config:
    tree: dict[str, Any] = tiny_tree(partition={"clients": CLIENTS})
    tree["distill"] = {"name": "random", "ipc": list(ipc)}
    return config_file.from_dict(tree)


def held_by(*clients: int) -> int:
    """How many images of the rarest class these clients hold together."""
    config = config_for(1)
    loaded = data.load(config.data, config.seed)
    labels, classes = loaded.train.labels, loaded.spec.num_classes
    parts = partition.split(labels, classes, config.partition, config.seed)
    histograms = parts.histograms(labels, classes)
    return min(
        sum(column) for column in zip(*(histograms[client] for client in clients), strict=True)
    )


LEFT, ALL = held_by(0, 2), held_by(*range(CLIENTS))


def assert_all_differ(synthetic: SyntheticSet) -> None:
    assert len({image.numpy().tobytes() for image in synthetic.images}) == len(synthetic)


def test_all_that_there_is_can_be_asked_for():
    strategy, _ = start(config_for(ALL))
    assert_full(strategy.sets[ALL], ALL)
    assert_all_differ(strategy.sets[ALL])


def test_those_that_are_left_give_up_to_their_last_image_and_none_twice(
    monkeypatch: pytest.MonkeyPatch,
):
    failing(monkeypatch, FAILED)
    strategy, _ = start(config_for(LEFT, 2))
    assert list(strategy.failures) == [FAILED]
    for ipc in (LEFT, 2):
        assert_full(strategy.sets[ipc], ipc)
        assert_all_differ(strategy.sets[ipc])
        assert set(strategy.sets[ipc].clients.tolist()) == {0, 2}
        for client, counts in strategy.plans[ipc].items():
            held = strategy.descriptions[client].histogram
            assert all(made <= has for made, has in zip(counts, held, strict=True))


def test_too_few_images_on_those_that_are_left_end_the_run_with_the_reasons(
    monkeypatch: pytest.MonkeyPatch,
):
    assert LEFT < ALL
    failing(monkeypatch, FAILED)
    with pytest.raises(ClientsFailed) as raised:
        start(config_for(ALL))
    message = str(raised.value)
    for part in (
        "the clients that are left cannot fill the set",
        f"distill.ipc asks for {ALL} images of class",
        f"the clients hold enough for {LEFT}; accepted: up to {LEFT},",
        f"client {FAILED}: MemoryError: client {FAILED} ran out of memory",
        "mend one of them",
    ):
        assert part in message
