"""Sets of several sizes that guide each other."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from matching import OPTIONS, QUICK, images_of, of, reference, task
from torch import Tensor, nn

from fedistill.distillers.dream import DREAM
from fedistill.distillers.mdc import MDC
from fedistill.distillers.mibdc import MIBDC
from fedistill.guidance import GuidanceOptions, MixtureGuide, comparable
from fedistill.reference import Learner, RealBatches


def test_without_weight_and_with_one_set_mibdc_is_dream():
    (dream,) = of(DREAM(**QUICK), 2)
    (alone,) = of(MIBDC(**QUICK, weight=0.0), 2)
    assert torch.equal(dream.images, alone.images)


@pytest.mark.parametrize("estimator", ["mine", "infonce"])
def test_guidance_moves_small_sets_and_says_what_it_estimated(estimator: Any):
    plain = of(MIBDC(**QUICK, weight=0.0), 1, 2, 4)
    guided = of(MIBDC(**QUICK, weight=100.0, warmup=0.0, estimator=estimator), 1, 2, 4)
    assert not torch.equal(plain[0].images, guided[0].images)
    names = set(guided[0].curves)
    assert {f"matching/ipc-{ipc}" for ipc in (1, 2, 4)} <= names
    assert {"information/real-1", "information/1-2", "information/2-4"} <= names
    assert {name for name in plain[0].curves if name.startswith("information")} == set()
    for curve in guided[0].curves.values():
        assert [step for step, _ in curve] == [0, 1, 2]
        assert all(torch.tensor(value).isfinite() for _, value in curve)


def test_larger_sets_may_guide_by_their_features_alone():
    plain = of(MIBDC(**QUICK, weight=0.0), 1, 2, 4)
    guided = of(MIBDC(**QUICK, weight=10.0, warmup=0.0, estimator="features"), 1, 2, 4)
    moved = [not torch.equal(a.images, b.images) for a, b in zip(plain, guided, strict=True)]
    assert moved == [True, True, False]
    drawn = {name for name in guided[0].curves if not name.startswith("matching")}
    assert drawn == {"likeness/1-2", "likeness/1-4", "likeness/2-4"}


def test_guidance_begins_after_its_warmup():
    (found, _) = of(MIBDC(**{**QUICK, "iterations": 10}, warmup=0.5), 1, 2)
    assert [step for step, _ in found.curves["information/1-2"]] == [5, 6, 7, 8, 9]


def test_a_set_with_one_class_is_matched_alone_and_the_others_guide_each_other(
    caplog: pytest.LogCaptureFixture,
):
    part = MIBDC(**QUICK, warmup=0.0)
    rows = [task([0, 1, 0], ipc=1), task([2, 2, 0], ipc=5), task([3, 3, 3], ipc=9)]
    found = part.distill_sizes(rows)
    assert [len(size.images) for size in found] == [1, 4, 9]
    information = {name for name in found[0].curves if name.startswith("information")}
    assert information == {
        "information/real-5", "information/real-9", "information/5-9", "information/5-class",
        "information/9-class",
    }  # fmt: skip
    assert "the sets of IPC [1] here have too few classes" in caplog.text


@pytest.mark.parametrize(
    ("counts", "sizes", "classes"),
    [
        # Five clients, IPC 1 / 10 / 50 of ten classes: two of the first set, all of the others.
        ([[1, 0, 0, 0, 0, 1], [1] * 6, [5] * 6], [2, 3], range(6)),
        ([[1] * 6, [2] * 6, [5] * 6], [1, 2, 3], range(6)),  # one client
        # A set alone shares its classes with nobody: two sets on fewer classes say more.
        ([[1, 1, 0, 0, 0, 0], [1] * 6], [1, 2], [0, 1]),
        ([[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [5] * 6], [2, 3], range(4)),
        ([[1, 1, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0], [5] * 6], [1, 2, 3], [0, 1]),
        # None shares two classes with another: one is compared with real images.
        ([[1, 1, 0, 0, 0, 0], [0, 0, 2, 2, 0, 0]], [2], [2, 3]),
        ([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], [2], range(3)),
        ([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], [], []),
    ],
)
def test_sets_of_few_classes_are_left_out_where_others_gain_by_it(
    counts: list[list[int]], sizes: list[int], classes: Any
):
    sets = [images_of(row, ipc=number) for number, row in enumerate(counts, 1)]
    chosen, common = comparable(sets[::-1])
    assert [own.ipc for own in chosen] == sizes
    assert common == list(classes)


def test_sets_that_follow_features_may_share_a_single_class():
    part = MIBDC(**QUICK, warmup=0.0, estimator="features")
    found = part.distill_sizes([task([0, 1, 0], ipc=1), task([2, 2, 2], ipc=5)])
    assert "likeness/1-5" in found[0].curves


def test_many_sizes_leave_no_more_curves_than_a_share_has_room_for():
    sizes = range(1, 15)
    found = of(MIBDC(**{**QUICK, "iterations": 1}, warmup=0.0, guidance="two_way"), *sizes)
    names = set(found[0].curves)
    assert {f"matching/ipc-{ipc}" for ipc in sizes} <= names
    assert {"information/real-1", "information/1-class", "information/1-14"} <= names
    assert len(names) == len(sizes) + 50


def test_it_is_said_which_classes_have_no_guidance(caplog: pytest.LogCaptureFixture):
    MIBDC(**QUICK).distill_sizes([task([1, 1, 0], ipc=1), task([2, 2, 2], ipc=5)])
    assert (
        "the sets of IPC [1, 5] here are compared on the classes that all of them hold, 2 of 3"
        in (caplog.text)
    )
    caplog.clear()
    of(MIBDC(**QUICK), 1, 2)
    MIBDC(**QUICK, weight=0.0).distill_sizes([task([1, 1, 0], ipc=1), task([2, 2, 2], ipc=5)])
    assert not caplog.text


def test_a_set_without_images_is_left_out():
    found = MIBDC(**QUICK, warmup=0.0).distill_sizes([task([0, 0, 0], ipc=1), task([2, 2, 2])])
    assert [len(size.images) for size in found] == [0, 6]
    assert "information/real-2" in found[0].curves


def test_guidance_raises_the_reward():
    """Without matching, the images climb what the mixture rewards."""
    options = replace(OPTIONS, iterations=60, restart=1000, network_images=0, interval=1000)
    guidance = GuidanceOptions(warmup=0.0, estimator="infonce", beta=0.0, weight=1.0)
    # As in training: a network that knows the classes a little.
    spec = reference()
    learner = Learner(replace(options, network_images=90, network_lr=0.05), spec, 0)
    batches = RealBatches(replace(options, choice="random"), spec)
    for _ in range(20):
        learner.learn(batches)
    own = [images_of([1, 1, 1]), images_of([3, 3, 3])]
    guide = MixtureGuide(guidance, options, spec, own)
    rewards = []
    for _ in range(60):
        for images in own:
            images.pixels.grad = torch.zeros_like(images.pixels)
        guide.add(learner.module, batches, torch.ones(2))
        for images in own:
            with torch.no_grad():
                assert images.pixels.grad is not None
                images.pixels -= images.pixels.grad / images.pixels.grad.norm()
        rewards.append(sum(value.item() for value in guide._rewards.estimates.values()))
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 1


class Counted:
    """A reward that grows by 1 with every unit of an output: its slope counts the views drawn."""

    kind = "counted"

    def __init__(self) -> None:
        self.estimates: dict[str, Tensor] = {}
        self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1

    def __call__(
        self, real: Any, outputs: Mapping[int, Tensor], labels: Tensor, compared: int
    ) -> dict[int, Tensor]:
        return {size: rows.sum() for size, rows in outputs.items() if rows.requires_grad}


def test_the_step_of_the_guide_is_weight_by_mean_loss_by_share_of_views_shown():
    """So that an image moves as far, whatever the unit of the matching and the size of its set."""
    options = replace(OPTIONS, tiles=1)
    small, large = (images_of([n] * 3, options) for n in (2, 10))
    guidance = GuidanceOptions(weight=3.0, samples=4, warmup=0.0)
    guide = MixtureGuide(guidance, options, reference(), [small, large])
    rewards = guide._rewards = Counted()  # type: ignore[assignment]
    batches = RealBatches(options, reference())

    def steps(*losses: float) -> list[float]:
        """The gradient of a class of each set, by pixel, for losses of the matching."""
        for own in (small, large):
            own.pixels.grad = torch.zeros_like(own.pixels)
        guide.add(nn.Flatten(), batches, torch.tensor(losses))
        found = []
        for own in (small, large):
            assert own.pixels.grad is not None
            of_class = own.pixels.grad[own.of(1)].sum(0)
            torch.testing.assert_close(of_class, of_class.mean().expand_as(of_class))
            found.append(of_class.mean().item())
        return found

    # Four views of a class are drawn; all of the small set are shown, and 4 of 10 of the large one.
    # The pull of an image is multiplied by the images of its class.
    assert steps(1.0, 5.0) == pytest.approx([-3 * 1 * 2 * 4, -3 * 5 * 0.4 * 10 * 4])
    assert steps(2.0, 0.0) == pytest.approx([-3 * 1.05 * 2 * 4, -3 * 4.75 * 0.4 * 10 * 4])
    guide.restart()
    assert rewards.forgotten == 1
    assert steps(7.0, 1.0) == pytest.approx([-3 * 7 * 2 * 4, -3 * 1 * 0.4 * 10 * 4])


def test_small_sets_are_no_part_of_large_ones_but_in_mdc():
    small, large = of(MIBDC(**QUICK), 1, 3)
    assert not torch.equal(small.images, large.images[::3])
    assert not MDC().optimises_jointly
    assert MIBDC().optimises_jointly
    assert MIBDC().cotrains_sizes
