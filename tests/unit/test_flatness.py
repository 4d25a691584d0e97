"""Flatness: zero while the moving average is where the images are, and the formula after that."""

import pytest
import torch
from torch import Tensor, nn

from fedistill.losses.flatness import Flatness

STREAM = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 1, 6, 6, generator=STREAM)
NET = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
for parameter in NET.parameters():
    parameter.data = torch.randn(parameter.shape, generator=STREAM)
    parameter.requires_grad_(False)


def test_it_is_zero_while_the_images_stay_where_they_are():
    flatness = Flatness(rate=0.9, temperature=4.0)
    images = IMAGES.clone().requires_grad_()
    for _ in range(3):
        term = flatness(images, NET(images), NET)
        assert term.item() == pytest.approx(0, abs=1e-6)
        assert torch.autograd.grad(term, images)[0].abs().max() < 1e-5


def test_it_is_the_divergence_from_the_moving_average():
    flatness = Flatness(rate=0.9, temperature=4.0)
    average = IMAGES.clone()
    for step in range(4):
        images = (IMAGES + step).requires_grad_()
        found = flatness(images, NET(images), NET)
        past = (NET(average).double() / 4).softmax(1)
        now = (NET(images).double() / 4).softmax(1)
        expected = (past * (past.log() - now.log())).sum(1).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)
        gradients = [torch.autograd.grad(loss, images)[0] for loss in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
        average = 0.9 * average + 0.1 * (IMAGES + step)


def test_the_average_has_no_graph_and_does_not_move_the_images():
    flatness = Flatness(rate=0.5, temperature=1.0)
    seen: list[Tensor] = []

    def answer(past: Tensor) -> Tensor:
        seen.append(past.clone())
        assert not past.requires_grad
        assert not torch.is_grad_enabled()
        return NET(past)

    images = IMAGES.clone().requires_grad_()
    flatness(images, NET(images), answer)
    with torch.no_grad():
        images += 1
    flatness(images, NET(images), answer)
    assert torch.equal(images.detach(), IMAGES + 1)
    assert torch.equal(seen[0], seen[1])  # the first images: they are taken in after the answer
