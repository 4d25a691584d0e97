"""One set whose subsets are matched too, one after the other."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from matching import OPTIONS, QUICK, SPEC, images_of, reference, task
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.distillers.mdc import MDC, _Subsets, subset_distances
from fedistill.losses.matching import gradient_distance, signature
from fedistill.models import build
from fedistill.models.features import penultimate
from fedistill.reference import RealBatches


def test_subset_distances_are_those_of_plain_loops():
    options = replace(OPTIONS, tiles=2)
    own, network = images_of([3, 2, 0]), build(OPTIONS.network, SPEC, 0, "net")
    batches = RealBatches(options, reference())
    batches.choose(network, [0, 1])
    expected = []
    for n in (1, 2):
        distances = []
        for label, count in ((0, 3), (1, 2)):
            if n > count:
                continue
            views = mosaic.expand(own.pixels.detach()[own.of(label)][:n], 2)
            mean = penultimate(network, views).mean(0)
            real = penultimate(network, batches.of(label)).mean(0)
            distances.append((mean - real).square().sum().item())
        expected.append(sum(distances) / len(distances))
    real = {label: penultimate(network, batches.of(label)).detach().mean(0) for label in (0, 1)}
    found = subset_distances(network, own, own.pixels.detach(), real, options)
    assert found.tolist() == pytest.approx(expected, 1e-4)


def mdc(counts: Sequence[int], **options: Any) -> _Subsets:
    chosen = MDC(**{**QUICK, "restart": 2, "interval": 1, "review": 2, **options})
    own = images_of(counts, chosen)
    loop = chosen.condenser([task(counts)], reference(), [own])
    assert isinstance(loop, _Subsets)
    return loop


def test_mdc_matches_all_images_and_the_first_ones_alike():
    """The gradient is that of N x (loss of all + loss of the subset)."""
    loop = mdc([4, 4, 4], augmentation="none", metric="mse")
    (own,) = loop.sets
    network = build(OPTIONS.network, SPEC, 0, "net")
    loop.batches.choose(network, [0, 1, 2])
    loop.subset = 2
    loop._descend(network, 0)
    pixels = images_of([4, 4, 4]).pixels.detach().requires_grad_()
    total = torch.zeros(())
    for label in range(3):
        real = loop.batches.of(label)
        wanted = signature(network, real, torch.full((len(real),), label))
        for first in (4, 2):
            views = mosaic.expand(pixels[4 * label : 4 * label + first], 2)
            targets = torch.full((len(views),), label)
            found = signature(network, views, targets, differentiable=True)
            total = total + 4 * gradient_distance(found, wanted, "mse")
    (expected,) = torch.autograd.grad(total, pixels)
    assert own.pixels.grad is not None
    torch.testing.assert_close(own.pixels.grad, expected, rtol=1e-3, atol=1e-5)


def test_mdc_matches_no_class_twice():
    loop = mdc([3, 2, 0])
    loop.subset = 2
    assert [loop.prefixes(loop.sets[0], label) for label in (0, 1)] == [[None, 2], [None]]


def test_mdc_judges_images_and_not_networks():
    for lr, moves in ((1.0, True), (1e-12, False)):
        loop = mdc([5, 5, 5], iterations=9, lr=lr, restart=3, review=100, network_images=64)
        loop.run()
        changed = torch.stack(loop._drifts).abs().max().item() > 1e-4
        assert changed == moves


def test_mdc_moves_on_to_other_subsets_and_keeps_what_they_learnt():
    loop = mdc([4, 4, 4], iterations=14, lr=1.0)
    (own,) = loop.sets
    seen: list[tuple[int, int, Tensor]] = []
    real = loop.prepare

    def prepare(network: nn.Module, step: int) -> None:
        real(network, step)
        seen.append((loop.subset, loop.kept, own.pixels.detach().clone()))

    loop.prepare = prepare  # type: ignore[method-assign]
    loop.run()
    assert seen[0][:2] == (1, 0)
    assert {subset for subset, _, _ in seen} <= {1, 2, 3}
    for (subset, kept, before), (_, _, after) in pairwise(seen):
        assert kept < subset
        for label in range(3):
            start = 4 * label
            held = slice(start, start + kept)
            assert torch.equal(before[held], after[held])
            assert not torch.equal(
                before[start + kept : start + 4], after[start + kept : start + 4]
            )
    assert any(kept for _, kept, _ in seen)
    assert {"subset/matched", "subset/kept"} <= set(loop.curves)


def test_mdc_reviews_what_it_has_measured():
    """Also where it measures once a review; more seldom is refused."""
    loop = mdc([4, 4, 4], iterations=7, lr=1.0, interval=2, review=2, restart=100)
    loop.run()
    assert loop._learnt
    with pytest.raises(ValueError, match="review is 2 and interval is 5"):
        MDC(review=2, interval=5)
