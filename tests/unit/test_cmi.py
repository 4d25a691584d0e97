"""CMI: closed forms, a plain reference, and which network is asked when."""

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import CPU, Constant, tiny_images, tiny_spec, tiny_teacher
from torch import Tensor

from fedistill.losses.base import Regularizer, Surroundings
from fedistill.losses.cmi import CMI, conditional_mutual_information
from fedistill.models.features import penultimate

STREAM = torch.Generator().manual_seed(0)
SCORES = torch.randn(6, 5, generator=STREAM) * 3
LABELS = torch.tensor([4, 0, 4, 0, 0, 2])
SPEC = tiny_spec()
IMAGES = torch.randn(6, 1, 8, 8, generator=STREAM)


def around(**changes: Any) -> Surroundings:
    return Surroundings(
        **{
            "shard": tiny_images(4),
            "teachers": [tiny_teacher()],
            "spec": SPEC,
            "seed": 0,
            "path": ("recover", 0, 0),
            "device": CPU,
            "dtype": torch.float32,
            **changes,
        }
    )


def by_loops(scores: Tensor, labels: Tensor) -> Tensor:
    """The formula, image by image and feature by feature."""
    p = scores.softmax(1)
    total = torch.zeros(())
    for i in range(len(p)):
        mates = [j for j in range(len(p)) if labels[j] == labels[i]]
        for d in range(p.shape[1]):
            q = torch.stack([p[j, d] for j in mates]).sum() / len(mates)
            total = total + p[i, d] * (p[i, d].log() - q.log())
    return total / len(p)


def cmi(scores: Tensor, labels: Tensor) -> float:
    return conditional_mutual_information(scores, labels).item()


def test_two_classes_by_hand():
    # Class 0 has (1/2, 1/2) and (9/10, 1/10) around (7/10, 3/10); class 1 agrees with itself.
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    first = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)
    second = 0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)
    found = cmi(p.log() + 7, torch.tensor([0, 0, 1, 1]))
    assert found == pytest.approx((first + second) / 4, rel=1e-5)


@pytest.mark.parametrize("images", [2, 3, 7])
def test_images_without_anything_in_common_reach_the_log_of_their_number(images: int):
    scores = 1000 * torch.eye(images)
    assert cmi(scores, torch.zeros(images).long()) == pytest.approx(math.log(images), rel=1e-5)


def test_it_agrees_with_the_plain_formula_and_its_gradient():
    found = []
    for formula in (conditional_mutual_information, by_loops):
        scores = SCORES.clone().requires_grad_()
        value = formula(scores, LABELS)
        found.append((value, *torch.autograd.grad(value, scores)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_order_of_images_and_the_numbers_of_classes_do_not_matter():
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    expected = cmi(SCORES, LABELS)
    assert cmi(SCORES[order], LABELS[order]) == pytest.approx(expected, rel=1e-5)
    assert cmi(SCORES, 9 - LABELS) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_pulls_images_of_a_class_together():
    term = CMI().prepared(around())
    images, found = IMAGES, []
    for _ in range(6):
        images = images.clone().requires_grad_()
        value = term(images, LABELS)
        found.append(value.item())
        (gradient,) = torch.autograd.grad(value, images)
        images = (images - 2 * gradient / gradient.norm()).detach()
    assert found[-1] < 0.5 * found[0]
    assert gradient[LABELS == 2].abs().sum() == 0  # alone in its class


def test_the_softmax_is_over_features_or_logits():
    teacher = tiny_teacher()
    for space, scores in (("features", penultimate(teacher, IMAGES)), ("logits", teacher(IMAGES))):
        term = CMI(space=space).prepared(around(teachers=[teacher]))  # type: ignore[arg-type]
        assert term(IMAGES, LABELS).item() == pytest.approx(cmi(scores, LABELS), rel=1e-5)


def test_one_image_of_each_class_is_zero_and_one_warning(caplog: pytest.LogCaptureFixture):
    teacher = Constant([0.0, 1.0])
    term = CMI(space="logits").prepared(around(teachers=[teacher]))
    images = IMAGES[:3].clone().requires_grad_()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            value = term(images, torch.tensor([2, 0, 1]))
            assert value.item() == 0
            (gradient,) = torch.autograd.grad(value, images)
            assert not gradient.any()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "two or more" in caplog.text
    assert teacher.seen == 0


def values(term: Regularizer, calls: int) -> list[float]:
    return [term(IMAGES, LABELS).item() for _ in range(calls)]


def test_a_share_of_the_calls_acts_and_makes_up_for_the_others():
    always = values(CMI().prepared(around()), 1)[0]
    found = values(CMI(every=4).prepared(around()), 400)
    acting = [value for value in found if value]
    assert acting == pytest.approx([4 * always] * len(acting))
    assert 70 < len(acting) < 130
    assert sum(found) / 400 == pytest.approx(always, rel=0.3)
    # No rhythm: a loop over 2 or 4 classes finds each of them served.
    assert all(any(found[first::4]) for first in range(4))
    assert found == values(CMI(every=4).prepared(around()), 400)
    assert found != values(CMI(every=4).prepared(around(seed=1)), 400)


def test_calls_ask_one_of_several_teachers_at_random():
    teachers = [tiny_teacher(seed) for seed in range(3)]
    alone = [values(CMI().prepared(around(teachers=[teacher])), 1)[0] for teacher in teachers]
    found = values(CMI().prepared(around(teachers=teachers)), 60)
    for value in alone:
        assert 8 < sum(one == pytest.approx(value) for one in found) < 34


def test_proxies_are_trained_on_the_shard_and_decided_by_the_seed():
    options = CMI(network="proxy", pool=2, epochs=2, width=4)
    given = around()
    before = given.shard.images.clone()
    found = values(options.prepared(given), 12)
    assert len({round(value, 7) for value in found}) == 2
    assert found == values(options.prepared(given), 12)
    assert torch.equal(given.shard.images, before)
    for change in (
        {"seed": 1},
        {"path": ("recover", 1, 0)},
        {"shard": tiny_images(4, seed=3)},
        {"teachers": [tiny_teacher(1)]},
    ):
        same = found == values(options.prepared(replace(given, **change)), 12)  # type: ignore[arg-type]
        assert same == ("teachers" in change), change


def test_without_a_network_it_refuses():
    with pytest.raises(RuntimeError, match="prepared"):
        CMI()(IMAGES, LABELS)


def test_bad_options_are_refused_together():
    with pytest.raises(ValueError, match=r"pool is 0; accepted: 1 or more; every is 0"):
        CMI(pool=0, every=0)
