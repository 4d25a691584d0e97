"""Likeness of sets: distances of class means, as plain loops find them."""

import pytest
import torch

from fedistill.losses.bottleneck import MixtureOptions
from fedistill.losses.likeness import Likeness

LABELS = torch.tensor([1, 1, 4, 4, 4])
REAL = torch.zeros(5, 3)


def rows(seed: int, moved: bool = True) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_(moved)


def plain(own: torch.Tensor, other: torch.Tensor) -> float:
    total = 0.0
    for label in (1, 4):
        mine = [row for row, it in zip(own.tolist(), LABELS.tolist(), strict=True) if it == label]
        theirs = [
            row for row, it in zip(other.tolist(), LABELS.tolist(), strict=True) if it == label
        ]
        means = [[sum(column) / len(column) for column in zip(*it, strict=True)]
                 for it in (mine, theirs)]  # fmt: skip
        squared = sum((a - b) ** 2 for a, b in zip(*means, strict=True))
        total += squared / sum(b**2 for b in means[1]) / 2
    return total


def test_distances_are_those_of_plain_loops():
    outputs = {1: rows(0), 10: rows(1), 50: rows(2, moved=False)}
    found = Likeness(MixtureOptions(alpha=0.5))
    rewards = found(REAL, outputs, LABELS, 2)
    assert list(rewards) == [1, 10]  # the largest guides alone
    expected = plain(outputs[1], outputs[10]) + plain(outputs[1], outputs[50])
    assert rewards[1].item() == pytest.approx(-0.5 * expected, rel=1e-5)
    assert found.estimates["10-50"].item() == pytest.approx(plain(outputs[10], outputs[50]), 1e-5)


def test_a_set_is_moved_by_its_own_reward_alone():
    outputs = {1: rows(0), 10: rows(1)}
    rewards = Likeness(MixtureOptions())(REAL, outputs, LABELS, 2)
    rewards[1].backward(retain_graph=True)
    assert outputs[10].grad is None
    rewards[10].backward()
    assert outputs[10].grad is not None
    assert outputs[10].grad.abs().sum() == 0  # it has nobody to follow


def test_two_way_lets_larger_sets_learn_too():
    outputs = {1: rows(0), 10: rows(1)}
    found = Likeness(MixtureOptions(guidance="two_way"))
    rewards = found(REAL, outputs, LABELS, 2)
    assert set(found.estimates) == {"1-10", "10-1"}
    assert rewards[10].item() == pytest.approx(-plain(outputs[10], outputs[1]), rel=1e-5)


def test_equal_sets_are_at_no_distance():
    same = rows(3)
    rewards = Likeness(MixtureOptions())(REAL, {1: same, 2: same.detach()}, LABELS, 2)
    assert rewards[1].item() == 0


def test_who_climbs_the_reward_becomes_like_the_larger_set():
    own, large = rows(0).detach(), rows(1, moved=False)
    found = Likeness(MixtureOptions())
    for _ in range(100):
        own.requires_grad_()
        (slope,) = torch.autograd.grad(found(REAL, {1: own, 10: large}, LABELS, 2)[1], own)
        own = (own + slope).detach()
    assert plain(rows(0), large) > 0.5
    assert plain(own, large) < 1e-3
