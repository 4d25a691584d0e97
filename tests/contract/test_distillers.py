"""What every distiller promises; a new file in `distillers/` is tested without being listed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher, tiny_tree
from torch import nn

from fedistill import config_file, registry
from fedistill.distillers.base import Distiller, Task, real_images
from fedistill.errors import ConfigError
from fedistill.images import DataSpec, ImageSet

NAMES = registry.names("distillers")
GREY, COLOUR = tiny_spec(), tiny_spec(channels=3)
COUNTS = [2, 0, 3]

pytestmark = pytest.mark.parametrize("name", NAMES)


def quick(name: str) -> Distiller:
    part = registry.load("distillers", name)
    fields = {field.name for field in dataclasses.fields(part)}
    return part(**({"iterations": 3} if "iterations" in fields else {}))


def task(
    counts: Sequence[int] = tuple(COUNTS),
    spec: DataSpec = GREY,
    teachers: Sequence[nn.Module] = (),
    **changes: Any,
) -> Task:
    return Task(
        **{
            "counts": list(counts),
            "shard": tiny_images(spec=spec),
            "teachers": teachers or [tiny_teacher(spec=spec)],
            "models": [CONVNET] * max(1, len(teachers)),
            "spec": spec,
            "seed": 0,
            "partition_id": 0,
            "device": CPU,
            **changes,
        }
    )


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("counts", [COUNTS, [1, 1, 1], [0, 0, 1], [7, 0, 0], [0, 0, 0]], ids=str)
def test_exactly_the_images_that_were_asked_for(name: str, spec: DataSpec, counts: list[int]):
    images = quick(name).distill(task(counts, spec)).images
    assert images.shape == (sum(counts), spec.channels, 8, 8)
    assert images.dtype == torch.uint8
    assert images.device == CPU


def test_the_images_are_not_flat_nor_all_alike(name: str):
    images = quick(name).distill(task()).images.float()
    assert images.flatten(1).std(1).min() > 1
    assert len({tuple(image.flatten().tolist()) for image in images}) == sum(COUNTS)


def test_the_same_task_gives_the_same_bytes(name: str):
    first, second = (quick(name).distill(task()) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.curve == second.curve


@pytest.mark.parametrize("change", ["seed", "partition_id", "attempt"])
def test_seed_partition_and_attempt_change_every_image(name: str, change: str):
    base = quick(name).distill(task()).images
    other = quick(name).distill(task(**{change: 1})).images
    assert all(not torch.equal(a, b) for a, b in zip(base, other, strict=True))


def test_the_global_generator_has_no_say_and_is_left_alone(name: str):
    torch.manual_seed(1)
    first = quick(name).distill(task()).images
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    given = task()
    second = quick(name).distill(given).images
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, second)


def test_shard_and_teachers_are_left_alone(name: str):
    teacher, shard = tiny_teacher(), tiny_images()
    images, labels = shard.images.clone(), shard.labels.clone()
    state = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    quick(name).distill(task(teachers=[teacher], shard=shard))
    assert torch.equal(shard.images, images)
    assert torch.equal(shard.labels, labels)
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    for module in teacher.modules():
        assert not module.training
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    for parameter in teacher.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_a_shard_with_few_images_is_enough(name: str):
    shard = tiny_images(1)
    one_class = ImageSet(shard.images[:1], shard.labels[:1])
    for held, counts in ((shard, [3, 3, 3]), (one_class, [4, 0, 0])):
        assert len(quick(name).distill(task(counts, shard=held)).images) == sum(counts)


def test_several_teachers_are_taken(name: str):
    teachers = [tiny_teacher(0), tiny_teacher(1)]
    assert len(quick(name).distill(task(teachers=teachers)).images) == sum(COUNTS)


def test_progress_reaches_its_end(name: str):
    told: list[tuple[int, int]] = []
    task_ = task(report=lambda done, total, loss: told.append((done, total)))
    curve = quick(name).distill(task_).curve
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(torch.tensor(loss).isfinite() for _, loss in curve)


@pytest.mark.parametrize("loss", registry.names("losses"))
def test_a_regularizer_changes_the_images(name: str, loss: str):
    base = quick(name).distill(task()).images
    regularizer = registry.build("losses", loss, {})
    found = quick(name).distill(task(regularizers=[(10.0, regularizer)])).images
    assert not torch.equal(base, found)


def test_an_unknown_option_is_refused_with_the_known_ones(name: str):
    with pytest.raises(ConfigError, match=r"distill\.iteration_count: unknown key; known: "):
        config_file.from_dict(tiny_tree(distill={"name": name, "iteration_count": 3}))


def test_the_options_come_back_from_the_config(name: str):
    config = config_file.from_dict({"distill": {"name": name}})
    part = registry.build("distillers", name, config.distill.options)
    assert part == registry.load("distillers", name)()
    assert isinstance(part.uses_real_images, bool)
    assert isinstance(part.needs_batch_norm, bool)


def test_real_images_are_of_the_class_that_was_asked_for(name: str):
    shard = tiny_images(2)
    start = real_images(task([3, 1, 0], shard=shard))
    for image, label in zip(start, [0, 0, 0, 1], strict=True):
        mine = shard.images[shard.labels == label]
        assert any(torch.equal(image, real) for real in mine)
    assert len({tuple(image.flatten().tolist()) for image in start[:3]}) == 2
