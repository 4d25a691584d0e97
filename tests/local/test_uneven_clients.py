"""Clients that hold one class, or three images: whole sets, labels from those who know."""

from typing import Any

import pytest
import torch
from fakes import tiny_config
from federation import assert_full, failing, start

from fedistill.config import Config
from strategies.base import FedDistill

ONE_CLASS_EACH = {"name": "pathological", "clients": 10, "classes_per_client": 1}
SPLITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one class each": (ONE_CLASS_EACH, {}),
    "skewed": ({"name": "dirichlet", "clients": 5, "alpha": 0.05, "min_samples": 1}, {}),
    "three images": ({"name": "quantity", "clients": 6, "alpha": 0.3, "min_samples": 3}, {}),
    "three images each": ({"name": "iid", "clients": 9}, {"fraction": 0.02}),
}


def uneven(split: str, **sections: Any) -> Config:
    partition, data = SPLITS[split]
    data = {"fraction": 0.1, **data}
    sections = {"data": data, "distill": {"ipc": [3]}, **sections}
    return tiny_config(partition=partition, **sections)


def finite(strategy: FedDistill, ipc: int = 3) -> bool:
    labels = strategy.sets[ipc].soft_labels
    return labels is not None and bool(labels.logits.isfinite().all())


@pytest.mark.parametrize("slots", ["even", "histogram"])
@pytest.mark.parametrize("split", SPLITS)
def test_clients_that_hold_little_fill_the_set(split: str, slots: str):
    how = {"relabel": {"prior_correction": True}, "federation": {"slots": slots}}
    strategy, _ = start(uneven(split, **how))
    assert strategy.failures == {}
    assert_full(strategy.sets[3], 3)
    assert finite(strategy)
    held = strategy.histograms
    assert min(sum(counts) for counts in held.values()) <= 15
    for label in range(10):
        whole = sum(counts[label] for counts in held.values())
        for client, made in strategy.plans[3].items():
            if slots == "histogram":
                assert abs(made[label] - 3 * held[client][label] / whole) < 1


def test_who_holds_one_class_labels_that_class_alone():
    """With a constant teacher each, the labels tell who gave them."""
    how = {"name": "mix", "prior_correction": False}
    strategy, _ = start(uneven("one class each", relabel=how))
    synthetic = strategy.sets[3]
    for client, net in strategy.teachers.items():
        torch.nn.init.zeros_(net.classifier.weight)  # type: ignore[arg-type, union-attr]
        torch.nn.init.constant_(net.classifier.bias, float(client))  # type: ignore[arg-type, union-attr]
    labels = strategy.refine(synthetic, strategy.config.relabel).soft_labels
    assert labels is not None
    for client, counts in strategy.histograms.items():
        (label,) = (number for number, count in enumerate(counts) if count)
        mine = labels.logits[:, synthetic.hard_labels == label]
        assert mine.unique().tolist() == [client]


@pytest.mark.parametrize("name", ["own", "single", "mean", "consensus"])
def test_the_other_ways_to_label_take_the_correction_too(name: str):
    found = [
        start(uneven("skewed", relabel={"name": name, "prior_correction": wanted}))[0]
        for wanted in (False, True)
    ]
    assert all(map(finite, found))
    assert found[0].sets[3].sha256 != found[1].sets[3].sha256


def test_the_slots_of_a_client_that_fails_go_to_who_holds_most(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, 4)
    strategy, _ = start(uneven("three images"))
    assert_full(strategy.sets[3], 3)
    assert 4 not in strategy.sets[3].clients
    held = {n: counts for n, counts in strategy.histograms.items() if n != 4}
    for client, made in strategy.plans[3].items():
        assert all(has or not count for has, count in zip(held[client], made, strict=True))
