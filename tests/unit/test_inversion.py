"""The methods that optimise pixels: whose turn it is, and what their switches do."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch import Tensor, nn

from fedistill.config import ModelConfig
from fedistill.distillers.base import Batch, Task
from fedistill.distillers.edc import EDC
from fedistill.distillers.gvbsm import GVBSM
from fedistill.distillers.inversion import Inversion, Objective, Show, shard_batches
from fedistill.distillers.sre2l import SRe2L
from fedistill.models import build
from fedistill.teacher import freeze

G_VBSM = GVBSM(iterations=4, batch_size=3, drop=0.3)


class Listening(nn.Module):
    """A teacher that writes its name down whenever it is asked with gradients."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.inner = tiny_teacher()

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.calls.append(self.name)
        return self.inner(images)


def task(teachers: Sequence[nn.Module] = (), **changes: Any) -> Task:
    teachers = teachers or [tiny_teacher()]
    return Task(
        **{
            "counts": [2, 2, 2],
            "shard": tiny_images(),
            "teachers": teachers,
            "models": [CONVNET] * len(teachers),
            "spec": tiny_spec(),
            "seed": 0,
            "partition_id": 0,
            "device": CPU,
            **changes,
        }
    )


def images_of(part: Inversion, **changes: Any) -> Tensor:
    return part.distill(task(**changes)).images


class Noting(Objective):
    """An objective that only notes which batches and images it gets."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.shown: list[Tensor] = []

    def start(self, labels: Tensor, number: int) -> None:
        assert number == len(self.batches)
        self.batches.append(labels.tolist())

    def loss(self, images: Tensor, show: Show) -> Tensor:
        assert torch.equal(show(images), show(images))  # one view an iteration
        self.shown.append(show(images).detach())
        return images.sum()


class Traced(Inversion):
    def objective(self, task: Task) -> Objective:
        object.__setattr__(self, "noting", Noting())
        return self.noting  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("order", "batches"),
    [("across", [[0, 1, 2, 0], [2, 2]]), ("class", [[0, 0, 1, 2], [2, 2]])],
)
def test_batches_go_across_the_classes_or_class_by_class(order: Any, batches: list[list[int]]):
    part = Traced(order=order, batch_size=4, iterations=2)
    part.distill(task(counts=[2, 1, 3]))
    assert part.noting.batches == batches  # type: ignore[attr-defined]


def test_every_iteration_has_a_view_of_its_own():
    part = Traced(iterations=3, crop=0.3)
    part.distill(task())
    first, second, third = part.noting.shown  # type: ignore[attr-defined]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_pixels_stay_in_their_range():
    images = images_of(Traced(iterations=60, lr=1.0))
    assert not images.any()  # the sum of the pixels is least where all are black


@pytest.mark.parametrize(("init", "real"), [("noise", False), ("real", True)])
def test_a_start_from_real_images_is_one_and_is_said(init: Any, real: bool):
    part = Traced(iterations=1, lr=1e-9, crop=1.0, init=init)
    assert part.uses_real_images is real
    shard = tiny_images()
    made = part.distill(task(shard=shard)).images
    found = [any(torch.equal(image, one) for one in shard.images) for image in made]
    assert all(found) is real


def test_a_batch_that_started_from_other_images_is_not_taken_again():
    """Which real images a batch starts from depends on how many are wanted of every class."""
    kept: dict[str, Batch] = {}

    def recall(key: Any, make: Any) -> Batch:
        return kept.setdefault(str(key), make())

    part = SRe2L(init="real", iterations=1, lr=1e-6, batch_size=2)
    images_of(part, counts=[2, 4, 0], recall=recall)
    again = images_of(part, counts=[1, 5, 0], recall=recall)
    assert torch.equal(again, images_of(part, counts=[1, 5, 0]))
    before = len(kept)
    assert torch.equal(again, images_of(part, counts=[1, 5, 0], recall=recall))
    assert len(kept) == before


def test_the_shard_is_gone_through_once_in_chunks():
    shard = tiny_images(40)
    batches = list(shard_batches(task(shard=shard)))
    assert [len(labels) for _, labels in batches] == [50, 50, 20]
    assert torch.equal(torch.cat([labels for _, labels in batches]), shard.labels)
    assert torch.equal(batches[1][0], tiny_spec().normalise(shard.images[50:100]))


@pytest.mark.parametrize(
    "part",
    [SRe2L(iterations=4, batch_size=3), G_VBSM, EDC(iterations=4, batch_size=3)],
    ids=["sre2l", "gvbsm", "edc"],
)
def test_teachers_are_asked_in_turn_and_the_count_runs_on(part: Inversion):
    calls: list[str] = []
    part.distill(task([freeze(Listening(name, calls)) for name in "abc"]))
    assert "".join(calls) == "abcabcab"  # two batches of four iterations


def test_edc_with_its_own_terms_switched_off_is_gvbsm_bit_for_bit():
    options = {field.name: getattr(G_VBSM, field.name) for field in fields(G_VBSM)}
    edc = EDC(**options, alpha=1.0, flatness_weight=0.0)
    assert torch.equal(images_of(edc), images_of(G_VBSM))
    teachers = [tiny_teacher(0), tiny_teacher(1)]
    assert torch.equal(images_of(edc, teachers=teachers), images_of(G_VBSM, teachers=teachers))


@pytest.mark.parametrize(
    "change",
    [
        {"statistics_weight": 1.0},
        {"first_weight": 1.0},
        {"momentum": 0.0},
        {"drop": 0.9},
        {"densify_weight": 10.0},
        {"alpha": 1.0},
        {"flatness_weight": 25.0},
        {"flatness_rate": 0.1, "flatness_weight": 25.0},
        {"flatness_temperature": 1.0, "flatness_weight": 25.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_option_changes_the_images(change: dict[str, float]):
    base = EDC(iterations=8, init="noise", lr=0.3)
    if len(change) > 1:
        base = replace(base, flatness_weight=25.0)
    assert not torch.equal(images_of(base), images_of(replace(base, **change)))  # type: ignore[arg-type]


def test_views_do_not_depend_on_which_layers_are_dropped():
    pairs = []
    for drop in (0.0, 0.9):
        part = replace(G_VBSM, drop=drop, statistics_weight=0.0)
        pairs.append(images_of(part))
    assert torch.equal(*pairs)


def test_densification_is_nothing_at_one_image_a_class():
    with_term, without = (replace(G_VBSM, densify_weight=weight) for weight in (100.0, 0.0))
    assert torch.equal(images_of(with_term, counts=[1, 1, 1]), images_of(without, counts=[1, 1, 1]))
    assert not torch.equal(images_of(with_term), images_of(without))


def test_a_teacher_without_batch_norm_will_do():
    model = ModelConfig(depth=2, width=4, norm="instance")
    teacher = freeze(build(model, tiny_spec(), 0, "instance"))
    for part in (G_VBSM, EDC(iterations=3)):
        part.check(teacher, model, tiny_spec())
        assert images_of(part, teachers=[teacher]).float().std() > 1


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ValueError, match="iterations is 0; accepted: 1 or more") as error:
        EDC(iterations=0, lr=0, batch_size=0, crop=2, shift=-1, momentum=1, drop=-1, alpha=2,
            flatness_rate=1, flatness_temperature=0, statistics_weight=-1, first_weight=-1,
            densify_weight=-1, flatness_weight=-1)  # fmt: skip
    assert len(str(error.value).split("; accepted: ")) == 1 + 14
    with pytest.raises(ValueError, match=r"bn_weight is -1.*first_bn_w.*class_bn_weight is -1"):
        SRe2L(bn_weight=-1, first_bn_weight=-1, class_bn_weight=-1)
