"""DM: its step against a plain one, in parts against the whole, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedistill import augmentation
from fedistill.config import ModelConfig
from fedistill.distillers import dm
from fedistill.distillers.base import Task, real_images
from fedistill.distillers.dm import DM, runs
from fedistill.errors import ModelError
from fedistill.images import ImageSet
from fedistill.losses.base import Regularizer
from fedistill.losses.cmi import CMI
from fedistill.losses.image_norm import ImageNorm
from fedistill.models import build

SPEC = replace(tiny_spec(channels=3), flip=True)
SMALL = DM(iterations=4, width=8, batch_real=6)
NETWORK = ModelConfig(width=8, norm="instance")


def task(counts: Sequence[int] = (3, 0, 2), **changes: Any) -> Task:
    return Task(
        **{
            "counts": list(counts),
            "shard": tiny_images(spec=SPEC),
            "teachers": [tiny_teacher(spec=SPEC)],
            "models": [CONVNET],
            "spec": SPEC,
            "seed": 0,
            "partition_id": 1,
            "device": CPU,
            **changes,
        }
    )


def plain(given: Task, options: DM) -> tuple[Tensor, list[float]]:
    """Algorithm 1 with the whole loss in one graph; images [M, C, H, W] and losses."""
    spec, shard = given.spec, given.shard
    images = spec.normalise(real_images(given)).requires_grad_()
    order, changes = given.stream("real batches"), given.stream("augmentation")
    velocity, losses = torch.zeros_like(images), []
    for step in range(options.iterations):
        path = ("recover", given.partition_id, given.attempt, "network", step)
        network = build(NETWORK, spec, given.seed, *path)
        loss = torch.zeros(())
        for weight, term in given.terms():
            loss = loss + weight * term(images, given.labels)
        for label in sorted(set(given.labels.tolist())):
            held = spec.normalise(shard.images[shard.labels == label])
            real = held[torch.randperm(len(held), generator=order)[: options.batch_real]]
            change = augmentation.draw(options.augmentation, spec.size, changes, flip=True)
            real_mean, mean = (
                network.features(augmentation.apply(batch, change)).flatten(1).mean(0)  # type: ignore[operator]
                for batch in (real, images[given.labels == label])
            )
            loss = loss + ((real_mean - mean) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, images)
        velocity = options.momentum * velocity + gradient
        images = spec.clamp_((images - options.lr * velocity).detach()).requires_grad_()
        losses.append(loss.item())
    return images.detach(), losses


@pytest.mark.parametrize("partition_id", range(4))  # other draws of the augmentation
def test_it_takes_the_steps_of_the_plain_loss(partition_id: int):
    given = task(partition_id=partition_id, regularizers=[(0.05, ImageNorm())])
    options = replace(SMALL, lr=30.0)
    images, losses = plain(given, options)
    found = options.distill(given)
    assert [loss for _, loss in found.curve] == pytest.approx(losses, rel=1e-3)
    off, moved = (
        (found.images.int() - other.int()).abs().max().item()
        for other in (SPEC.to_uint8(images), real_images(given))
    )
    assert off <= 1
    assert moved > 50


@dataclass(frozen=True, kw_only=True)
class Sizes(Regularizer):
    """Notes what it is given."""

    seen: list[list[int]]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        assert len(images) == len(labels)
        self.seen.append(labels.tolist())
        return images.sum()


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_in_chunks_it_is_the_same(chunk: int):
    terms = {1: ImageNorm(), 2: ImageNorm(), 4: CMI()}  # CMI needs its classes whole
    given = task([4, 0, 4], regularizers=[(3.0, terms[chunk])])
    whole, parts = (SMALL.distill(given), replace(SMALL, chunk=chunk).distill(given))
    for (_, a), (_, b) in zip(whole.curve, parts.curve, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert (whole.images.int() - parts.images.int()).abs().max() <= 1


def test_no_more_than_a_chunk_is_in_a_network_at_once(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    penultimate = dm.penultimate

    def noted(network: Any, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return penultimate(network, images)

    monkeypatch.setattr(dm, "penultimate", noted)
    seen: list[list[int]] = []
    given = task([5, 1, 1], regularizers=[(1.0, Sizes(seen=seen))])
    replace(SMALL, chunk=3, iterations=1).distill(given)
    assert max(sizes) == 3
    assert seen == [[0, 0, 0], [0, 0, 1], [2]]


def test_terms_see_all_classes_at_once_where_they_fit():
    seen: list[list[int]] = []
    SMALL.distill(task(regularizers=[(1.0, Sizes(seen=seen))]))
    assert seen == [[0, 0, 0, 2, 2]] * 4


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([2, 2, 2], 6, [(0, 6)]),
        ([2, 2, 2], 5, [(0, 4), (4, 6)]),
        ([2, 0, 2], 3, [(0, 2), (2, 4)]),
        ([7, 1, 3], 3, [(0, 3), (3, 6), (6, 8), (8, 11)]),
        ([0, 0], 3, []),
        ([3, 0, 0], 3, [(0, 3)]),
    ],
)
def test_runs_hold_whole_classes(counts: list[int], size: int, expected: list[tuple[int, int]]):
    assert [(run.start, run.stop) for run in runs(counts, size)] == expected


@pytest.mark.parametrize(("chunk", "passes"), [(256, 1), (2, 2)])
def test_real_images_cost_a_forward_pass_alone(chunk: int, passes: int):
    steps, real, synthetic, given = 3, 2 * 6, 3 + 4, task([3, 0, 4])
    with FlopCounterMode(display=False) as one, torch.no_grad():
        build(NETWORK, SPEC, 0)(torch.zeros(1, 3, 8, 8))
    with FlopCounterMode(display=False) as whole:
        replace(SMALL, iterations=steps, chunk=chunk).distill(given)
    image = one.get_flop_counts()["Global"][torch.ops.aten.convolution]
    counts = whole.get_flop_counts()["Global"]
    # In parts the synthetic images' activations are computed twice.
    assert counts[torch.ops.aten.convolution] == image * steps * (real + passes * synthetic)
    # A backward pass to the inputs alone costs what the forward pass costs.
    assert counts[torch.ops.aten.convolution_backward] == image * steps * synthetic


def test_each_step_has_a_network_of_its_own(monkeypatch: pytest.MonkeyPatch):
    firsts: list[float] = []

    def noted(*args: Any) -> Any:
        network = build(*args)
        firsts.append(next(network.parameters()).flatten()[0].item())
        return network

    monkeypatch.setattr(dm, "build", noted)
    SMALL.distill(task())
    assert len(firsts) == len(set(firsts)) == 4


def test_the_loss_falls():
    curve = replace(SMALL, iterations=40, width=32, init="noise").distill(task()).curve
    losses = [loss for _, loss in curve]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])


def test_images_beyond_the_real_ones_start_from_noise():
    shard = tiny_images(1, SPEC)
    found = replace(SMALL, lr=1e-9).distill(task([3, 0, 1], shard=shard)).images
    real = [shard.images[shard.labels == label][0] for label in (0, 2)]
    assert torch.equal(found[0], real[0])
    assert torch.equal(found[3], real[1])
    assert (found[1].int() - real[0].int()).abs().float().mean() > 20
    assert not torch.equal(found[1], found[2])


def test_only_a_start_from_real_images_shows_any():
    assert DM().uses_real_images
    assert not DM(init="noise").uses_real_images
    shards = [tiny_images(spec=SPEC), tiny_images(spec=SPEC, seed=5)]
    far = [replace(SMALL, init="noise", lr=1e-9).distill(task(shard=shard)) for shard in shards]
    assert torch.equal(far[0].images, far[1].images)


def test_a_single_real_image_of_a_class_is_enough():
    shard = tiny_images(spec=SPEC)
    alone = ImageSet(shard.images[:1], shard.labels[:1])
    assert len(SMALL.distill(task([2, 0, 0], shard=alone)).images) == 2


def test_bad_options_are_refused_together():
    with pytest.raises(ValueError, match=r"batch_real is 0.*lr is -1.*momentum is 1.*'rotate'"):
        DM(batch_real=0, lr=-1, momentum=1, augmentation="rotate")


def test_random_networks_too_deep_for_the_images_are_refused():
    with pytest.raises(ModelError, match=r"distill\.depth.*8-pixel images vanish.*1 to 3"):
        DM(depth=4).check(tiny_teacher(), CONVNET, SPEC)
    DM(depth=3, width=4).check(tiny_teacher(), CONVNET, SPEC)
