"""What every distiller promises; a new file in `distillers/` is tested without being listed."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher, tiny_tree
from torch import Tensor, nn

from fedistill import config_file, planning, registry
from fedistill.client import make_share
from fedistill.config import Config
from fedistill.distillers.base import Distiller, Task, real_images
from fedistill.errors import ConfigError, PartitionError
from fedistill.images import DataSpec, ImageSet
from fedistill.shares import Share, integrate
from fedistill.slots import Plan

NAMES, LOSSES = registry.names("distillers"), registry.names("losses")
GREY, COLOUR = tiny_spec(), tiny_spec(channels=3)
COUNTS = [2, 0, 3]
IPC = 4

# Options that say how much a part works; set wherever a part has one of that name.
QUICK = {
    "iterations": 3,
    "rounds": 2,
    "epochs": 1,
    "student_epochs": 2,
    "snapshots": 2,
    "pool": 1,
    "width": 8,
}


def quick_options(kind: str, name: str) -> dict[str, int]:
    fields = {field.name for field in dataclasses.fields(registry.load(kind, name))}
    return {key: value for key, value in QUICK.items() if key in fields}


def quick(name: str) -> Distiller:
    part = registry.build("distillers", name, quick_options("distillers", name))
    assert isinstance(part, Distiller)
    return part


def parts(have: Callable[[Distiller], bool] = lambda part: True) -> pytest.MarkDecorator:
    """All distillers, or those that have a property."""
    return pytest.mark.parametrize("name", [name for name in NAMES if have(quick(name))])


every = parts()
# A method that makes images of nothing but numbers draws them anew for every seed; one that shows
# real images may well choose the same ones again.
that_make = parts(lambda part: part.real_images_per_image == 0)
that_choose = parts(lambda part: part.real_images_per_image > 0)
that_optimise = parts(lambda part: part.takes_regularizers)
that_only_choose = parts(lambda part: not part.takes_regularizers)


def task(
    counts: Sequence[int] = tuple(COUNTS),
    spec: DataSpec = GREY,
    teachers: Sequence[nn.Module] = (),
    **changes: Any,
) -> Task:
    return Task(
        **{
            "counts": list(counts),
            "shard": tiny_images(30, spec),
            "teachers": teachers or [tiny_teacher(spec=spec)],
            "models": [CONVNET] * max(1, len(teachers)),
            "spec": spec,
            "seed": 0,
            "partition_id": 0,
            "device": CPU,
            **changes,
        }
    )


def config_of(name: str, loss: str | None = None, clients: int = 1) -> Config:
    tree = tiny_tree(partition={"clients": clients})
    terms = [{"name": loss, "weight": 1.0, **quick_options("losses", loss)}] if loss else []
    options = {"ipc": [IPC], "regularizers": terms, **quick_options("distillers", name)}
    return config_file.from_dict({**tree, "distill": {"name": name, **options}})


@every
@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("counts", [COUNTS, [1, 1, 1], [0, 0, 1], [7, 0, 0], [0, 0, 0]], ids=str)
def test_exactly_the_images_that_were_asked_for(name: str, spec: DataSpec, counts: list[int]):
    images = quick(name).distill(task(counts, spec)).images
    assert images.shape == (sum(counts), spec.channels, 8, 8)
    assert images.dtype == torch.uint8
    assert images.device == CPU


@every
def test_the_images_are_not_flat_nor_all_alike(name: str):
    images = quick(name).distill(task()).images.float()
    assert images.flatten(1).std(1).min() > 1
    assert len({tuple(image.flatten().tolist()) for image in images}) == sum(COUNTS)


@every
def test_the_same_task_gives_the_same_bytes(name: str):
    first, second = (quick(name).distill(task()) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.curve == second.curve


@parts(lambda part: not part.depends_on_ipc)
def test_the_size_of_the_set_has_no_say_but_where_the_method_says_so(name: str):
    """The artefact store tells shares apart by it for the others alone."""
    first, second = (quick(name).distill(task(ipc=ipc)) for ipc in (3, 9))
    assert torch.equal(first.images, second.images)
    assert dict(first.curves) == dict(second.curves)


@that_make
@pytest.mark.parametrize("change", ["seed", "partition_id", "attempt"])
def test_seed_partition_and_attempt_change_every_image(name: str, change: str):
    base = quick(name).distill(task()).images
    other = quick(name).distill(task(**{change: 1})).images
    assert all(not torch.equal(a, b) for a, b in zip(base, other, strict=True))


@every
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


@every
def test_shard_and_teachers_are_left_alone(name: str):
    teacher, shard = tiny_teacher(), tiny_images(30)
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


@that_make
def test_a_shard_with_few_images_is_enough(name: str):
    shard = tiny_images(1)
    one_class = ImageSet(shard.images[:1], shard.labels[:1])
    for held, counts in ((shard, [3, 3, 3]), (one_class, [4, 0, 0])):
        assert len(quick(name).distill(task(counts, shard=held)).images) == sum(counts)


@that_choose
def test_a_shard_that_is_just_large_enough_will_do_and_planning_refuses_a_smaller_one(name: str):
    part, config = quick(name), config_of(name)
    held = 3 * part.real_images_per_image
    assert len(part.distill(task([3, 3, 3], shard=tiny_images(held))).images) == 9
    assert planning.allocate(config, GREY, {0: [held] * 3}, [3] * 3) == {0: [3] * 3}
    with pytest.raises(PartitionError, match=r"distill\.ipc asks for 3 images.* enough for 2\b"):
        planning.allocate(config, GREY, {0: [held, held - 1, held]}, [3] * 3)


@every
def test_a_later_request_repeats_no_image(name: str):
    part = quick(name)
    first = part.distill(task(COUNTS)).images
    later = part.distill(task([1, 2, 2], attempt=1, made=[COUNTS])).images
    assert len({tuple(image.flatten().tolist()) for image in torch.cat([first, later])}) == 10


@every
def test_several_teachers_are_taken(name: str):
    teachers = [tiny_teacher(0), tiny_teacher(1)]
    assert len(quick(name).distill(task(teachers=teachers)).images) == sum(COUNTS)


@every
def test_progress_reaches_its_end(name: str):
    told: list[tuple[int, int]] = []
    task_ = task(report=lambda done, total, loss: told.append((done, total)))
    curve = quick(name).distill(task_).curve
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(torch.tensor(loss).isfinite() for _, loss in curve)


@that_optimise
@pytest.mark.parametrize("loss", LOSSES)
def test_a_regularizer_changes_the_images(name: str, loss: str):
    base = quick(name).distill(task()).images
    regularizer = registry.build("losses", loss, quick_options("losses", loss))
    # CMI's published weights are in the thousands, as its softmax is nearly flat; and three steps
    # of a small learning rate are to show in 256 levels.
    found = quick(name).distill(task(regularizers=[(1e5, regularizer)])).images
    assert not torch.equal(base, found)


@every
def test_an_unknown_option_is_refused_with_the_known_ones(name: str):
    with pytest.raises(ConfigError, match=r"distill\.iteration_count: unknown key; known: "):
        config_file.from_dict(tiny_tree(distill={"name": name, "iteration_count": 3}))


@every
def test_the_options_come_back_from_the_config(name: str):
    config = config_file.from_dict({"distill": {"name": name}})
    part = registry.build("distillers", name, config.distill.options)
    assert part == registry.load("distillers", name)().for_sizes(config.distill.ipc)
    assert isinstance(part.uses_real_images, bool)
    assert isinstance(part.needs_batch_norm, bool)


@that_only_choose
@pytest.mark.parametrize("loss", LOSSES)
def test_an_extra_loss_term_is_refused_where_nothing_is_optimised(name: str, loss: str):
    with pytest.raises(ConfigError, match=rf"distill\.regularizers is given, and {name} makes"):
        planning.check(config_of(name, loss), GREY)


@cache
def state(client: int) -> dict[str, Tensor]:
    return tiny_teacher(client).state_dict()


def shares_of(config: Config, shards: Sequence[ImageSet], counts: Plan) -> list[Share]:
    """What the clients deliver; their teachers are trained already."""
    return [
        make_share(
            config,
            GREY,
            shard,
            counts[client],
            partition_id=client,
            teacher_states=[state(client)],
        )
        for client, shard in enumerate(shards)
    ]


def federated(name: str, clients: int, loss: str | None = None) -> None:
    """One or several clients fill the budget exactly, twice with the same bytes."""
    config = config_of(name, loss, clients)
    planning.check(config, GREY)
    images = tiny_images(2 * IPC * max(1, quick(name).real_images_per_image))
    shards = [
        images.select(torch.arange(client, len(images), clients)) for client in range(clients)
    ]
    plan = planning.plans(config, GREY, {n: it.histogram(3) for n, it in enumerate(shards)})[IPC]
    first, second = (shares_of(config, shards, plan) for _ in range(2))
    united = integrate(first, plan, GREY)
    assert united.sha256 == integrate(second, plan, GREY).sha256
    assert united.hard_labels.tolist() == [0] * IPC + [1] * IPC + [2] * IPC
    assert united.clients.unique().tolist() == list(range(clients))
    for share in first:
        assert torch.tensor([loss for _, loss in share.recover_curve]).isfinite().all()


@pytest.mark.parametrize("clients", [1, 2])
@every
def test_clients_fill_the_budget_exactly(name: str, clients: int):
    federated(name, clients)


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
@that_optimise
def test_clients_fill_the_budget_with_every_extra_loss_term(name: str, loss: str, clients: int):
    federated(name, clients, loss)


def test_real_images_are_of_the_class_that_was_asked_for():
    shard = tiny_images(2)
    start = real_images(task([3, 1, 0], shard=shard))
    for image, label in zip(start, [0, 0, 0, 1], strict=True):
        mine = shard.images[shard.labels == label]
        assert any(torch.equal(image, real) for real in mine)
    assert len({tuple(image.flatten().tolist()) for image in start[:3]}) == 2
