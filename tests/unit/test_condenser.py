"""The loop of gradient matching."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from matching import OPTIONS, SHARD, SPEC, images_of, reference
from torch import Tensor, nn

from fedistill import condenser, mosaic
from fedistill.condenser import Condenser, Images
from fedistill.distillers.mibdc import MIBDC
from fedistill.guidance import GuidanceOptions, MixtureGuide
from fedistill.losses.base import Regularizer
from fedistill.models import build
from fedistill.reference import Answer, RealBatches


def test_views_are_tiles_enlarged_to_the_frame():
    own = images_of([2, 0, 3])
    found = own.views(own.leaves(2))
    assert torch.equal(found, mosaic.expand(own.pixels[2:], 2))
    few = images_of([2, 0, 3], replace(OPTIONS, batch_synthetic=5))
    found = few.views(few.leaves(2))
    everything = mosaic.expand(few.pixels[2:], 2)
    assert len(found) == 5
    places = [int((everything == view).flatten(1).all(1).nonzero()) for view in found]
    assert len(set(places)) == 5


def test_views_of_the_first_images_are_of_these_alone():
    own = images_of([4, 1, 1])
    found = own.views(own.leaves(0, 2))
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
    batches = RealBatches(replace(OPTIONS, candidates=7), reference())
    batches.choose(network, [0])
    assert seen == [7]
    # A start may want more images than that: it gets real ones, and not noise.
    assert [len(batches.clustered(network, 0, count)) for count in (7, 12, 40)] == [7, 12, 30]


def test_sets_share_the_real_gradients_and_the_networks(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            seen.append(name)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, call)

    # `condenser.signature` is that of real images; those of views are taken in `matching`.
    for owner, name in ((RealBatches, "of"), (condenser, "signature"), (condenser, "Learner")):
        counted(owner, name)
    for sets in (1, 3):
        seen.clear()
        own = [images_of([1, 1, 1]) for _ in range(sets)]
        Condenser(replace(OPTIONS, restart=2), reference(), own).run()
        assert seen == [*["Learner", *["of", "signature"] * 6], "Learner", *["of", "signature"] * 3]


@pytest.mark.parametrize("choice", ["clusters", "random"])
def test_a_set_beside_others_is_that_of_a_run_of_its_own(choice: Any):
    """Though the others have more classes, and no set is seen whole in a step."""
    options = replace(OPTIONS, choice=choice, batch_synthetic=3, interval=2)
    alone, beside, other = (
        images_of(counts, options) for counts in ([0, 2, 1], [0, 2, 1], [3, 3, 3])
    )
    start = alone.pixels.detach().clone()
    Condenser(options, reference(), [alone]).run()
    Condenser(options, reference(), [other, beside]).run()
    assert not torch.equal(alone.pixels, start)
    assert torch.equal(beside.pixels, alone.pixels)


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
    many = Images(start.repeat(5, 1, 1, 1), [5, 0, 0], 5, options, reference())
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
    many = Images(start.repeat(6, 1, 1, 1), [6, 0, 0], 6, options, reference())
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


def test_extra_terms_pull_an_image_as_hard_when_it_is_its_turn_among_many():
    """As the matching does: a term would outweigh it in large sets, of which a part is shown."""
    options = replace(OPTIONS, tiles=1, batch_synthetic=2)
    one = images_of([1, 0, 0], options)
    many = Images(one.pixels.detach().repeat(6, 1, 1, 1), [6, 0, 0], 6, options, reference())
    slopes = []
    for own in (one, many):
        own.pixels.grad = torch.zeros_like(own.pixels)
        loop = Condenser(options, reference(), [own], [(3.0, Brightness())])
        loop._add_terms(own)
        slopes.append(own.pixels.grad)
    shown = slopes[1].abs().amax((1, 2, 3)) > 0
    assert shown.sum() == 2
    torch.testing.assert_close(slopes[1][shown], slopes[0].expand(2, -1, -1, -1))
    assert slopes[0].sum().item() == pytest.approx(3.0)


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
        ({"samples": 1}, "samples is 1; accepted: 2 or more"),
        ({"samples": 0, "estimator": "infonce"}, "samples is 0; accepted: 1 or more"),
        ({"candidates": 128}, "candidates is 128 and batch_real is 128"),
        ({"warmup": 1.0}, "warmup"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        MIBDC(**options)
