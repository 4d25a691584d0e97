"""ZCA whitening: closed forms, the way back, and what a spec makes of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import tiny_images, tiny_spec
from torch import Tensor

from fedistill import whitening
from fedistill.images import DataSpec
from fedistill.whitening import Whitening

SPEC = tiny_spec(channels=3, size=4)
IMAGES = tiny_images(100, SPEC).images
WHITENED = replace(SPEC, zca=whitening.fit(IMAGES))


def covariance(images: Tensor) -> Tensor:
    return torch.cov(images.flatten(1).double().T)


def plain_fit(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """ZCA as Kornia's documentation has it: the singular vectors of the covariance."""
    pixels = images.flatten(1).double() / 255
    centred = pixels - pixels.mean(0)
    u, s, _ = torch.linalg.svd(centred.T @ centred / (len(pixels) - 1))
    return pixels.mean(0), u @ torch.diag(1 / (s + eps).sqrt()) @ u.T


def test_two_pixels_by_hand():
    """Covariance [[a, b], [b, a]]: eigenvalues a + b along (1, 1), a - b along (1, -1)."""
    images = torch.tensor([[0, 0], [255, 255], [0, 255], [255, 0], [0, 0], [255, 255]])
    a, b = 3 / 10, 1 / 10  # six values of 0 or 1 about 1/2, over n - 1
    for eps in (0.1, 1e-9):
        found = whitening.fit(images.to(torch.uint8).view(6, 1, 1, 2), eps)
        along, across = (a + b + eps) ** -0.5, (a - b + eps) ** -0.5
        wanted = [[along + across, along - across], [along - across, along + across]]
        torch.testing.assert_close(found.matrix, torch.tensor(wanted) / 2)
        torch.testing.assert_close(found.mean, torch.tensor([0.5, 0.5]))


def test_it_is_the_textbook_formula():
    mean, matrix = plain_fit(IMAGES, 0.1)
    found = whitening.fit(IMAGES)
    torch.testing.assert_close(found.mean.double(), mean, atol=1e-7, rtol=0)
    torch.testing.assert_close(found.matrix.double(), matrix, atol=1e-6, rtol=0)
    assert torch.equal(found.matrix, found.matrix.T)


def test_without_the_constant_the_covariance_becomes_the_identity():
    spec = replace(SPEC, zca=whitening.fit(IMAGES, eps=0.0))
    shown = spec.normalise(IMAGES)
    identity = torch.eye(48, dtype=torch.float64)
    torch.testing.assert_close(covariance(shown), identity, atol=1e-4, rtol=0)
    torch.testing.assert_close(shown.mean(0), torch.zeros(3, 4, 4), atol=1e-4, rtol=0)


def test_with_the_constant_every_eigenvalue_becomes_its_share():
    before = torch.linalg.eigvalsh(covariance(IMAGES.double() / 255))
    after = torch.linalg.eigvalsh(covariance(WHITENED.normalise(IMAGES)))
    torch.testing.assert_close(after, before / (before + 0.1), atol=1e-5, rtol=0)


def test_fewer_images_than_pixels_and_even_one_will_do():
    for count in (1, 5):
        found = whitening.fit(IMAGES[:count])
        assert torch.equal(replace(SPEC, zca=found).to_uint8(found.apply(IMAGES / 255)), IMAGES)
    flat = whitening.fit(IMAGES[:1])
    torch.testing.assert_close(flat.matrix, torch.eye(48) / 0.1**0.5)


def test_the_order_of_the_images_and_the_threads_do_not_enter(monkeypatch: pytest.MonkeyPatch):
    threads = []  # so few numbers would be added up by one thread in any case

    def watch(name: str) -> None:
        function = getattr(torch.linalg, name)

        def watched(matrix: Tensor) -> Any:
            threads.append(torch.get_num_threads())
            return function(matrix)

        monkeypatch.setattr(torch.linalg, name, watched)

    watch("eigh")
    watch("inv")
    many = IMAGES.repeat(8, 1, 1, 1)
    order = torch.randperm(len(many), generator=torch.Generator().manual_seed(0))
    first = whitening.fit(many)
    torch.set_num_threads(2)
    second = whitening.fit(many[order])
    assert second.inverse.shape == (48, 48)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert threads == [1, 1, 1]
    assert torch.equal(first.matrix, second.matrix)
    assert torch.equal(first.mean, second.mean)
    assert first == second
    assert hash(first) == hash(second)
    assert first != whitening.fit(many[1:])
    assert first != "a whitening"


def test_the_way_back_finds_every_level():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(16, 3, 4, 4)
    for images in (IMAGES, levels, torch.zeros_like(levels), torch.full_like(levels, 255)):
        assert torch.equal(WHITENED.to_uint8(WHITENED.normalise(images)), images)
    assert WHITENED.normalise(IMAGES[:0]).shape == (0, 3, 4, 4)
    assert WHITENED.normalise(IMAGES[0]).shape == (3, 4, 4)


def test_bfloat16_around_it_has_no_say():
    expected = WHITENED.normalise(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        found = WHITENED.normalise(IMAGES)
        back = WHITENED.to_uint8(found)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(back, IMAGES)


@pytest.mark.parametrize("spec", [SPEC, WHITENED], ids=["plain", "whitened"])
def test_clamping_cuts_what_no_level_can_show_and_nothing_else(spec: DataSpec):
    inside = spec.normalise(IMAGES)
    torch.testing.assert_close(spec.clamp_(inside.clone()), inside, atol=1e-5, rtol=0)
    wild = inside + 3 * torch.randn(inside.shape, generator=torch.Generator().manual_seed(0))
    wild.requires_grad_()
    shown = spec.to_uint8(wild.detach())  # clips too
    assert spec.clamp_(wild) is wild
    assert torch.equal(spec.to_uint8(wild.detach()), shown)
    again = spec.clamp_(wild.detach().clone())
    torch.testing.assert_close(again, wild.detach(), atol=1e-5, rtol=0)
    low, high = spec.pixel_bounds()
    assert bool(((wild >= low - 1e-5) & (wild <= high + 1e-5)).all())


def test_the_bounds_hold_every_picture_and_no_more():
    """Over a box a linear map is least and greatest in corners: here of 4 pixels, 16 of them."""
    spec = tiny_spec(size=2)
    spec = replace(spec, zca=whitening.fit(tiny_images(9, tiny_spec(size=4)).images[..., :2, :2]))
    bits = torch.arange(16)[:, None] >> torch.arange(4) & 1
    corners = spec.normalise((255 * bits).to(torch.uint8).view(16, 1, 2, 2))
    low, high = spec.pixel_bounds()
    assert low.shape == high.shape == (1, 2, 2)
    torch.testing.assert_close(corners.amin(0), low)
    torch.testing.assert_close(corners.amax(0), high)


def test_beyond_the_frame_is_black_or_the_mean_image():
    black = SPEC.to_uint8(SPEC.outside().expand(3, 4, 4))
    assert black.max() == 0
    beyond = WHITENED.to_uint8(WHITENED.outside().expand(3, 4, 4))
    assert WHITENED.zca is not None
    assert torch.equal(beyond, (WHITENED.zca.mean * 255).round().to(torch.uint8).view(3, 4, 4))


def test_a_spec_comes_back_from_json_and_tensors():
    again = DataSpec.from_dict(WHITENED.as_dict(), {**WHITENED.tensors(), "images": IMAGES})
    assert again == WHITENED
    assert again != SPEC
    assert hash(again) == hash(WHITENED)
    assert DataSpec.from_dict(SPEC.as_dict(), WHITENED.tensors()) == SPEC
    assert SPEC.tensors() == {}
    assert "zca" not in SPEC.as_dict()
    assert WHITENED.as_dict() == {**SPEC.as_dict(), "zca": True}
    assert len(repr(WHITENED)) < 500


def test_a_whitening_that_is_missing_or_does_not_fit_is_refused():
    for left in ("zca_mean", "zca_matrix"):
        tensors = WHITENED.tensors()
        del tensors[left]
        with pytest.raises(ValueError, match=f"{left} is missing; accepted: "):
            DataSpec.from_dict(WHITENED.as_dict(), tensors)
    with pytest.raises(ValueError, match="zca_mean and zca_matrix are missing"):
        DataSpec.from_dict(WHITENED.as_dict())
    with pytest.raises(ValueError, match="of 48 numbers; accepted: 192, for images of 3 x 8 x 8"):
        replace(SPEC, size=8, zca=WHITENED.zca)


@pytest.mark.parametrize(
    ("mean", "matrix", "says"),
    [
        (torch.zeros(4), torch.eye(3), r"matrix is torch.float32 \(3, 3\); accepted.* \(4, 4\)"),
        (torch.zeros(2, 2), torch.eye(4), r"mean is torch.float32 \(2, 2\)"),
        (torch.zeros(4).double(), torch.eye(4), "mean is torch.float64"),
        (torch.zeros(4), torch.eye(4).half(), "matrix is torch.float16"),
        (torch.tensor([0.0, float("nan")]), torch.eye(2), "mean holds values that are not finite"),
        (torch.zeros(2), torch.eye(2) / 0, "matrix holds values that are not finite"),
    ],
)
def test_a_broken_whitening_is_refused(mean: Tensor, matrix: Tensor, says: str):
    with pytest.raises(ValueError, match=says):
        Whitening(mean, matrix)
