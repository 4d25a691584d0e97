"""Gradient matching against plain loops, and in parts."""

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fakes import tiny_spec
from torch import Tensor

from fedistill.config import ModelConfig
from fedistill.losses.matching import (
    Metric,
    feature_distance,
    gradient_distance,
    matched_weights,
    matching_gradient,
    signature,
    signature_distance,
)
from fedistill.models import build
from fedistill.models.features import penultimate

STREAM = torch.Generator().manual_seed(0)
SHAPES = [(2, 3, 3, 3), (4, 2, 1, 1)]
WANTED = [torch.randn(shape, generator=STREAM) for shape in SHAPES]
FOUND = [torch.randn(shape, generator=STREAM) for shape in SHAPES]
NETWORK = build(ModelConfig(width=4, depth=2, norm="instance"), tiny_spec(), 0, "net").double()
IMAGES = torch.randn(7, 1, 8, 8, generator=STREAM, dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 0])
REAL = torch.randn(5, 1, 8, 8, generator=STREAM, dtype=torch.float64)


def by_loops(metric: Metric) -> float:
    total = size = 0.0
    for found, wanted in zip(FOUND, WANTED, strict=True):
        for own, real in zip(found, wanted, strict=True):
            pairs = list(zip(own.flatten().tolist(), real.flatten().tolist(), strict=True))
            if metric == "cosine":
                product = sum(a * b for a, b in pairs)
                lengths = [math.sqrt(sum(v[i] ** 2 for v in pairs)) for i in (0, 1)]
                total += 1 - product / (lengths[0] * lengths[1])
            elif metric == "l1":
                total += sum(abs(a - b) for a, b in pairs)
            else:
                total += sum((a - b) ** 2 for a, b in pairs)
            size += sum(b**2 for _, b in pairs)
    return total / size if metric == "relative" else total


@pytest.mark.parametrize("metric", ["mse", "l1", "cosine", "relative"])
def test_gradient_distances_are_those_of_plain_loops(metric: Metric):
    assert gradient_distance(FOUND, WANTED, metric).item() == pytest.approx(by_loops(metric), 1e-5)
    assert gradient_distance(WANTED, WANTED, metric).item() == pytest.approx(0, abs=1e-5)


def test_the_relative_distance_has_no_unit_and_no_pole():
    bigger = [[1e-3 * entry for entry in entries] for entries in (FOUND, WANTED)]
    assert gradient_distance(*bigger, "relative").item() == pytest.approx(
        by_loops("relative"), 1e-4
    )
    zeros = [torch.zeros(shape) for shape in SHAPES]
    assert gradient_distance(zeros, zeros, "relative").item() == 0


def test_features_are_compared_by_the_squared_distance_of_their_means():
    found, wanted = torch.tensor([1.0, 2]), torch.tensor([3.0, -1])
    for metric in ("mse", "l1", "cosine"):
        assert feature_distance(found, wanted, metric).item() == 4 + 9
    assert feature_distance(found, wanted, "relative").item() == pytest.approx(13 / 10)


def test_the_relative_distance_of_a_signature_has_no_unit():
    wanted = [*WANTED, torch.tensor([3.0, -1])]
    found = [*FOUND, torch.tensor([1.0, 2])]
    bigger = [[100 * entry for entry in entries] for entries in (found, wanted)]
    expected = by_loops("relative") + 0.5 * 13 / 10
    for pair in ((found, wanted), bigger):
        assert signature_distance(*pair, "relative", 0.5).item() == pytest.approx(expected, 1e-4)


def test_only_the_weights_of_convolutions_are_matched():
    weights = matched_weights(NETWORK)
    assert [tuple(weight.shape) for weight in weights] == [(4, 1, 3, 3), (4, 4, 3, 3)]


def test_a_signature_is_the_mean_of_those_of_single_images():
    found = signature(NETWORK, IMAGES, LABELS, features=True)
    sums = [torch.zeros_like(entry) for entry in found]
    for image, label in zip(IMAGES, LABELS, strict=True):
        loss = F.cross_entropy(NETWORK(image[None]), label[None])
        gradients = torch.autograd.grad(loss, matched_weights(NETWORK))
        own = [*gradients, penultimate(NETWORK, image[None])[0].detach()]
        sums = [total + entry / len(IMAGES) for total, entry in zip(sums, own, strict=True)]
    assert len(found) == 3
    for entry, expected in zip(found, sums, strict=True):
        torch.testing.assert_close(entry, expected)
        assert not entry.requires_grad


def test_soft_targets_are_probabilities():
    hard = signature(NETWORK, IMAGES, LABELS)
    soft = signature(NETWORK, IMAGES, F.one_hot(LABELS, 3).double())
    for entry, expected in zip(soft, hard, strict=True):
        torch.testing.assert_close(entry, expected)


def distance_to_real(metric: Metric = "mse", feature_weight: float = 0.5) -> partial[Tensor]:
    wanted = signature(NETWORK, REAL, torch.tensor([1, 1, 0, 2, 2]), features=feature_weight > 0)
    return partial(signature_distance, wanted=wanted, metric=metric, feature_weight=feature_weight)


@pytest.mark.parametrize("feature_weight", [0.0, 0.5])
@pytest.mark.parametrize("metric", ["mse", "l1", "cosine", "relative"])
def test_parts_give_the_gradient_of_the_whole(metric: Metric, feature_weight: float):
    distance = distance_to_real(metric, feature_weight)
    whole, part = (
        matching_gradient(
            NETWORK, IMAGES, LABELS, distance, features=feature_weight > 0, chunk=chunk
        )
        for chunk in (7, 2)
    )
    torch.testing.assert_close(part[0], whole[0])
    torch.testing.assert_close(part[1], whole[1])


def test_the_gradient_is_that_of_finite_differences():
    distance = distance_to_real()
    slope, loss = matching_gradient(NETWORK, IMAGES, LABELS, distance, features=True, chunk=3)

    def at(images: Tensor) -> float:
        return distance(signature(NETWORK, images, LABELS, features=True)).item()

    assert loss.item() == pytest.approx(at(IMAGES))
    for place in [(0, 0, 3, 4), (2, 0, 0, 7), (6, 0, 5, 5)]:
        step = torch.zeros_like(IMAGES)
        step[place] = 1e-5
        assert slope[place].item() == pytest.approx((at(IMAGES + step) - at(IMAGES - step)) / 2e-5,
                                                    rel=1e-4, abs=1e-9)  # fmt: skip


def test_no_more_than_a_chunk_is_in_the_network_at_once():
    seen: list[int] = []
    hook = NETWORK.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        matching_gradient(NETWORK, IMAGES, LABELS, distance_to_real(), features=True, chunk=3)
    finally:
        hook.remove()
    assert seen[-6:] == [3, 3, 1] * 2


def test_the_views_and_the_network_are_left_as_they_were():
    images = IMAGES.clone()
    matching_gradient(NETWORK, images, LABELS, distance_to_real(), features=True, chunk=7)
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in NETWORK.parameters())


def test_descending_makes_the_signatures_alike():
    distance = distance_to_real("relative", 0.0)
    images = IMAGES.clone()
    losses: list[float] = []
    for _ in range(30):
        slope, loss = matching_gradient(NETWORK, images, LABELS, distance, features=False, chunk=7)
        losses.append(loss.item())
        images -= 0.3 * slope / slope.norm()
    assert losses[-1] < 0.5 * losses[0]


def test_shapes_that_do_not_belong_together_are_refused():
    wrong: Sequence[Tensor] = WANTED[:1]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        gradient_distance(FOUND, wrong, "mse")
