"""The loop of gradient matching, and what its methods add."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.condenser import Condenser, Images
from fedistill.distillers.base import Distilled, Task
from fedistill.distillers.dream import DREAM
from fedistill.distillers.mdc import MDC, _Subsets, subset_distances
from fedistill.distillers.mibdc import MIBDC
from fedistill.guidance import GuidanceOptions, MixtureGuide
from fedistill.images import DataSpec, ImageSet
from fedistill.losses.base import Regularizer
from fedistill.losses.matching import gradient_distance, signature
from fedistill.matching_options import MatchingOptions
from fedistill.models import build
from fedistill.models.features import penultimate
from fedistill.reference import Answer, Learner, RealBatches, Reference

SPEC, SHARD = tiny_spec(), tiny_images(30)
QUICK: dict[str, Any] = {
    "iterations": 3, "width": 4, "depth": 2, "network_images": 8, "batch_real": 4,
}  # fmt: skip
OPTIONS = MatchingOptions(**QUICK)


def reference(images: ImageSet = SHARD, spec: DataSpec = SPEC, **changes: Any) -> Reference:
    return Reference(
        **{"images": images, "spec": spec, "seed": 0, "path": ("test",), "device": CPU, **changes}
    )


def images_of(counts: Sequence[int], options: MatchingOptions = OPTIONS) -> Images:
    start = torch.randn(sum(counts), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    SPEC.clamp_(start)
    return Images(start, counts, max(counts), options, CPU)


def task(counts: Sequence[int], **changes: Any) -> Task:
    return Task(
        **{
            "counts": counts,
            "shard": SHARD,
            "teachers": [tiny_teacher()],
            "models": [CONVNET],
            "spec": SPEC,
            "seed": 0,
            "partition_id": 0,
            "device": CPU,
            "ipc": max(counts),
            **changes,
        }
    )


def test_views_are_tiles_enlarged_to_the_frame():
    own = images_of([2, 0, 3])
    found = own.views(own.leaves(2), torch.Generator())
    assert torch.equal(found, mosaic.expand(own.pixels[2:], 2))
    few = images_of([2, 0, 3], replace(OPTIONS, batch_synthetic=5))
    found = few.views(few.leaves(2), torch.Generator().manual_seed(0))
    everything = mosaic.expand(few.pixels[2:], 2)
    assert len(found) == 5
    places = [int((everything == view).flatten(1).all(1).nonzero()) for view in found]
    assert len(set(places)) == 5


def test_views_of_the_first_images_are_of_these_alone():
    own = images_of([4, 1, 1])
    found = own.views(own.leaves(0, 2), torch.Generator())
    assert torch.equal(found, mosaic.expand(own.pixels[:2], 2))


def test_real_batches_are_of_the_class_and_at_most_as_many_as_wanted():
    network = build(OPTIONS.network, SPEC, 0, "net")
    for choice in ("clusters", "random"):
        batches = RealBatches(replace(OPTIONS, choice=choice), reference())
        batches.choose(network, [0, 2])
        for label in (0, 2):
            mine = SPEC.normalise(SHARD.images[SHARD.labels == label])
            found = batches.of(label)
            assert len(found) == 4
            assert all((mine == image).flatten(1).all(1).any() for image in found)


def test_candidates_bound_what_is_clustered():
    seen: list[int] = []
    network = build(OPTIONS.network, SPEC, 0, "net")
    network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    RealBatches(replace(OPTIONS, candidates=7), reference()).choose(network, [0])
    assert seen == [7]


def test_sets_share_the_real_gradients_and_the_networks(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    real = RealBatches.of

    def of(self: RealBatches, label: int) -> Tensor:
        seen.append(label)
        return real(self, label)

    monkeypatch.setattr(RealBatches, "of", of)
    for sets in (1, 3):
        seen.clear()
        own = [images_of([1, 1, 1]) for _ in range(sets)]
        Condenser(OPTIONS, reference(), own).run()
        assert seen == [0, 1, 2] * 3


def test_a_set_beside_others_moves_as_it_would_alone():
    alone, first, other = images_of([1, 2, 1]), images_of([1, 2, 1]), images_of([3, 3, 3])
    Condenser(OPTIONS, reference(), [alone]).run()
    Condenser(OPTIONS, reference(), [first, other]).run()
    torch.testing.assert_close(first.pixels, alone.pixels)


def test_matching_brings_gradients_closer():
    own = images_of([4, 4, 4])
    losses: list[Tensor] = []
    options = replace(OPTIONS, iterations=40, restart=1000, network_images=0, lr=1.0,
                      augmentation="none", metric="relative", interval=1000)  # fmt: skip
    Condenser(options, reference(), [own]).run(losses.append)
    assert losses[-1].item() < 0.5 * losses[0].item()


def test_an_image_moves_as_far_alone_as_among_its_copies():
    """The learning rate is that of one image, whatever the number of images."""
    options = replace(OPTIONS, iterations=1, augmentation="none", lr=0.01)
    one = images_of([1, 0, 0], options)
    start = one.pixels.detach().clone()
    many = Images(start.repeat(5, 1, 1, 1), [5, 0, 0], 5, options, CPU)
    Condenser(options, reference(), [one]).run()
    Condenser(options, reference(), [many]).run()
    moved, expected = many.pixels - start, (one.pixels - start).expand(5, -1, -1, -1)
    assert expected.abs().max() > 0
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


def test_an_image_moves_as_far_when_it_is_its_turn_among_many():
    """Of large sets a part is shown; its images must not move further because turns are rare."""
    options = replace(OPTIONS, iterations=1, augmentation="none", tiles=1, batch_synthetic=2)
    one = images_of([1, 0, 0], options)
    start = one.pixels.detach().clone()
    many = Images(start.repeat(6, 1, 1, 1), [6, 0, 0], 6, options, CPU)
    Condenser(options, reference(), [one]).run()
    Condenser(options, reference(), [many]).run()
    moved = many.pixels.detach() - start
    shown = moved.abs().amax((1, 2, 3)) > 0
    assert shown.sum() == 2
    expected = (one.pixels.detach() - start).expand(2, -1, -1, -1)
    torch.testing.assert_close(moved[shown], expected, rtol=1e-3, atol=1e-6)


def test_a_cosine_schedule_slows_the_images_down_to_a_halt():
    def moves(schedule: Any) -> list[float]:
        own = images_of([2, 2, 2])
        options = replace(OPTIONS, iterations=20, network_images=0, momentum=0.0, metric="l1",
                          lr=1e-3, schedule=schedule)  # fmt: skip
        places = [own.pixels.detach().clone()]
        Condenser(options, reference(), [own]).run(
            lambda losses: places.append(own.pixels.detach().clone())
        )
        return [(after - before).abs().mean().item() for before, after in pairwise(places)]

    slowing, steady = moves("cosine"), moves("constant")
    assert slowing[0] == steady[0]
    assert slowing[-1] < 0.02 * steady[-1]
    assert 0.4 < sum(slowing) / sum(steady) < 0.6


def test_networks_are_trained_on_the_reference_and_replaced():
    networks: list[nn.Module] = []

    class Watched(Condenser):
        def prepare(self, network: nn.Module, step: int) -> None:
            if network not in networks:
                networks.append(network)
                start.append([p.detach().clone() for p in network.parameters()])

    start: list[list[Tensor]] = []
    options = replace(OPTIONS, iterations=4, restart=2, network_images=16, lr=1e-9)
    Watched(options, reference(), [images_of([1, 1, 1])]).run()
    assert len(networks) == 2
    for network, before in zip(networks, start, strict=True):
        now = list(network.parameters())
        assert all(not torch.equal(a, b) for a, b in zip(now, before, strict=True))


def test_answers_take_the_place_of_hard_labels():
    seen: list[tuple[int, int]] = []
    turns = iter(range(100))

    def ask() -> Answer:
        turn = next(turns)

        def answer(views: Tensor) -> Tensor:
            assert not views.requires_grad
            seen.append((turn, len(views)))
            return torch.full((len(views), 3), 1 / 3)

        return answer

    sets = [images_of([1, 1, 1]), images_of([2, 2, 2])]
    options = replace(OPTIONS, iterations=1)
    Condenser(options, reference(ask=ask), sets).run()
    assert seen == [(0, 8)]  # the network's batch alone
    seen.clear()
    Condenser(options, reference(ask=ask, soft=True), sets).run()
    # One who answers for the real images of a class and for those of every set.
    matched = [(turn, views) for turn in (1, 2, 3) for views in (4, 4, 8)]
    assert seen == [*matched, (4, 8)]


class Brightness(Regularizer):
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        assert len(labels.unique()) == 1
        return images.mean()


def test_extra_terms_move_the_images_too():
    means = []
    for terms in ([], [(50.0, Brightness())]):
        own = images_of([1, 2, 1])
        Condenser(OPTIONS, reference(), [own], terms).run()
        means.append(own.pixels.mean().item())
    assert means[1] < means[0]


def test_no_more_than_a_chunk_has_a_graph_at_once():
    most = 0

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal most
        if args[0].requires_grad:
            most = max(most, len(args[0]))

    class Watched(Condenser):
        def prepare(self, network: nn.Module, step: int) -> None:
            network.register_forward_pre_hook(watch)

    options = replace(OPTIONS, iterations=1, chunk=3, network_images=0)
    sets = [images_of([2, 2, 2]), images_of([5, 5, 5])]
    guidance = GuidanceOptions(warmup=0.0, samples=4)
    guide = MixtureGuide(guidance, options, reference(), sets)
    Watched(options, reference(), sets, guide=guide).run()
    assert most == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"iterations": 0}, "iterations"),
        ({"lr": 0.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"network_mix": 2.0}, "network_mix"),
        ({"augmentation": "colour"}, "augmentation"),
        ({"samples": 0}, "samples"),
        ({"warmup": 1.0}, "warmup"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        MIBDC(**options)


def of(part: DREAM | MDC | MIBDC, *sizes: int, **changes: Any) -> list[Distilled]:
    return part.distill_sizes([task([size] * 3, **changes) for size in sizes])


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


def test_small_sets_are_no_part_of_large_ones_but_in_mdc():
    small, large = of(MIBDC(**QUICK), 1, 3)
    assert not torch.equal(small.images, large.images[::3])
    assert not MDC().optimises_jointly
    assert MIBDC().optimises_jointly
    assert MIBDC().cotrains_sizes


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
