"""Data densification against its closed form and against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from fedistill.losses.densification import Densification, densification

STREAM = torch.Generator().manual_seed(0)


def divergence(eigenvalues: list[float], temperature: float = 4.0) -> float:
    """KL(softmax(l / 4) || softmax(l)) by its formula."""
    p = [math.exp(value) for value in eigenvalues]
    q = [math.exp(value / temperature) for value in eigenvalues]
    return sum(b / sum(q) * math.log(b / sum(q) / (a / sum(p))) for a, b in zip(p, q, strict=True))


def one_hot_images(*places: int) -> Tensor:
    """Images of 1 x 2 x 2 with one bright pixel; their mean square is 1."""
    images = torch.zeros(len(places), 4)
    for image, place in enumerate(places):
        images[image, place] = 2.0
    return images.view(-1, 1, 2, 2)


def test_two_copies_have_one_eigenvalue_and_a_zero():
    found = densification(one_hot_images(1, 1), torch.tensor([0, 0]))
    assert found.item() == pytest.approx(divergence([2.0, 0.0]), rel=1e-4)
    assert divergence([2.0, 0.0]) > 0.1


def test_orthogonal_images_are_as_dense_as_can_be():
    assert densification(one_hot_images(0, 1, 3), torch.tensor([5, 5, 5])).item() == pytest.approx(
        0, abs=1e-6
    )


def test_one_image_a_class_is_left_alone():
    images = torch.randn(3, 1, 4, 4, generator=STREAM).requires_grad_()
    term = densification(images, torch.tensor([4, 0, 2]))
    assert term.item() == 0
    assert not torch.autograd.grad(term, images)[0].any()


def test_the_classes_are_summed_whatever_their_order_and_size():
    labels = torch.tensor([1, 0, 1, 3, 0, 1, 4, 4])
    images = torch.randn(8, 2, 4, 4, generator=STREAM)
    expected = 0.0
    for label in (0, 1, 4):
        rows = images[labels == label].flatten(1).double()
        gram = [[float(a @ b) / 32 for b in rows] for a in rows]
        expected += divergence(torch.linalg.eigvals(torch.tensor(gram)).real.tolist())
    assert densification(images, labels).item() == pytest.approx(expected, rel=1e-4)


def test_following_the_gradient_makes_copies_differ_once_they_do_a_little():
    images = one_hot_images(1, 1) + 0.1 * torch.randn(2, 1, 2, 2, generator=STREAM)
    labels = torch.tensor([0, 0])

    def likeness(pair: Tensor) -> float:
        return torch.cosine_similarity(pair[0].flatten(), pair[1].flatten(), dim=0).item()

    before = likeness(images)
    for _ in range(50):
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(densification(images, labels), images)
        images = images.detach() - gradient
    assert likeness(images) < before - 0.1


def test_the_gradient_of_exact_copies_is_finite():
    images = one_hot_images(1, 1, 1, 1).requires_grad_()
    term = densification(images, torch.zeros(4, dtype=torch.int64))
    assert torch.autograd.grad(term, images)[0].isfinite().all()


def test_large_images_are_averaged_down():
    small = torch.randn(3, 1, 32, 32, generator=STREAM)
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    labels = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(densification(large, labels), densification(small, labels))


def test_the_part_has_a_temperature():
    images, labels = one_hot_images(1, 1), torch.tensor([0, 0])
    found = Densification(temperature=2.0)(images, labels)
    assert found.item() == pytest.approx(divergence([2.0, 0.0], 2.0), rel=1e-4)
    with pytest.raises(ValueError, match="temperature is 0; accepted: above 0"):
        Densification(temperature=0)
