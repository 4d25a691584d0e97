"""Siamese augmentation: each operation's closed form, and the same draw for both batches."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedistill import augmentation
from fedistill.augmentation import OPERATIONS, Parameters
from fedistill.crops import Views
from fedistill.seeding import generator

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ALL = "_".join(OPERATIONS)


def drawn(strategy: str, seed: int = 0, size: int = 8, **options: object) -> Parameters:
    return augmentation.draw(strategy, size, generator(seed), **{"flip": True, **options})  # type: ignore[arg-type]


def colored(brightness: float = 0.0, saturation: float = 1.0, contrast: float = 1.0) -> Tensor:
    color = torch.tensor([[brightness, saturation, contrast]])
    return augmentation.apply(IMAGES, Parameters(color=color))


def named(parameters: Parameters) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(parameters)
        if getattr(parameters, field.name) is not None
    }


def test_none_leaves_the_images_as_they_are():
    assert augmentation.apply(IMAGES, drawn("none")) is IMAGES
    assert augmentation.apply(IMAGES, drawn("flip", flip=False)) is IMAGES


@pytest.mark.parametrize("strategy", ["rotate", "color_", "", "crop_crop", "color crop"])
def test_a_strategy_that_is_not_known_is_refused(strategy: str):
    with pytest.raises(ValueError, match=r"accepted: 'none', or some of color, crop, cutout, flip"):
        augmentation.operations(strategy)


def test_brightness_adds():
    torch.testing.assert_close(colored(brightness=0.3), IMAGES + 0.3)


def test_saturation_moves_each_pixel_from_its_mean_over_the_channels():
    grey = IMAGES.mean(1, keepdim=True).expand_as(IMAGES)
    torch.testing.assert_close(colored(saturation=0.0), grey)
    torch.testing.assert_close(colored(saturation=2.0), 2 * IMAGES - grey)


def test_contrast_moves_each_pixel_from_the_mean_of_its_image():
    level = torch.stack([image.mean() for image in IMAGES])[:, None, None, None]
    torch.testing.assert_close(colored(contrast=0.5), (IMAGES + level) / 2)


def test_crop_is_a_window_of_the_padded_image():
    outside = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    found = set()
    for seed in range(60):
        views = drawn("crop", seed).views
        assert views is not None
        down, right = (round(float(share) * 8) for share in views.boxes[0, :2])
        found.add((down, right))
        padded = F.pad(IMAGES - outside, (1, 1, 1, 1)) + outside
        expected = padded[..., 1 + down : 9 + down, 1 + right : 9 + right]
        shown = augmentation.apply(IMAGES, Parameters(views=views), outside)
        torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-5)
    assert found == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


@pytest.mark.parametrize("size", [8, 9, 28])
def test_cutout_paints_a_square_with_its_centre_in_the_frame(size: int):
    ones, areas = torch.ones(1, 1, size, size), []
    side = int(size / 2 + 0.5)
    for seed in range(200):
        hidden = augmentation.apply(ones, drawn("cutout", seed, size))[0, 0] == 0
        rows, columns = hidden.any(1).sum().item(), hidden.any(0).sum().item()
        assert side // 2 <= min(rows, columns) <= max(rows, columns) <= side
        assert hidden.sum() == rows * columns
        areas.append(rows * columns)
    assert max(areas) == side**2
    black = torch.full((3, 1, 1), -2.0)
    painted = augmentation.apply(IMAGES, drawn("cutout"), black)
    changed = painted != IMAGES
    assert (painted[changed] == -2).all()
    assert changed.any()


def test_flip_mirrors_half_of_the_draws():
    count = 0
    for seed in range(400):
        found = augmentation.apply(IMAGES, drawn("flip", seed))
        mirrored = torch.equal(found, IMAGES.flip(-1))
        assert mirrored or torch.equal(found, IMAGES)
        count += mirrored
    assert 150 < count < 250


@pytest.mark.parametrize("zoom", [(1.2, 0.9), (1 / 1.2, 1.1)])
def test_scale_samples_around_the_centre(zoom: tuple[float, float]):
    height, width = zoom
    boxes = torch.tensor([[(1 - height) / 2, (1 - width) / 2, height, width]])
    found = augmentation.apply(IMAGES, Parameters(views=Views(boxes, torch.zeros(1).bool())))
    matrix = torch.tensor([[width, 0.0, 0.0], [0.0, height, 0.0]]).expand(5, 2, 3)
    grid = F.affine_grid(matrix, [5, 3, 8, 8], align_corners=False)
    expected = F.grid_sample(IMAGES, grid, align_corners=False)
    # At the frame the sampler fades into the padding; here the border pixel ends sharply.
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-5, rtol=1e-5)


def test_the_strengths_are_the_published_ones():
    parameters = drawn(ALL, compose=True, count=5000, size=32)
    assert parameters.color is not None
    assert parameters.views is not None
    assert parameters.hole is not None
    for column, (low, high) in zip(
        parameters.color.T, [(-0.5, 0.5), (0.0, 2.0), (0.5, 1.5)], strict=True
    ):
        assert low <= column.min() < low + 0.01
        assert high - 0.01 < column.max() <= high
    zoom = parameters.views.boxes[:, 2:]
    assert 1 / 1.2 <= zoom.min() < 0.84
    assert 1.19 < zoom.max() <= 1.2001
    move = (parameters.views.boxes[:, :2] - (1 - zoom) / 2) * 32
    assert sorted(set(move.round().flatten().tolist())) == list(range(-4, 5))
    centre = parameters.hole[:, :2] + 8
    assert (centre.min(), centre.max()) == (0, 32)


def test_one_operation_is_drawn_or_all_are():
    alone = [drawn(ALL, seed) for seed in range(200)]
    assert all(len(named(parameters)) == 1 for parameters in alone)
    kinds = {next(iter(named(parameters))) for parameters in alone}
    assert kinds == {"color", "views", "hole"}
    assert named(drawn("color_crop_cutout", compose=True)) == {"color", "views", "hole"}


def test_no_draw_mirrors_where_a_mirror_changes_the_class():
    for seed in range(100):
        views = drawn(ALL, seed, compose=True, flip=False).views
        assert views is not None
        assert not views.flips.any()
        assert len(named(drawn(ALL, seed, flip=False))) == 1


@pytest.mark.parametrize("compose", [False, True])
def test_both_batches_are_changed_alike(compose: bool):
    for seed in range(12):
        parameters = drawn(ALL, seed, compose=compose)
        together = augmentation.apply(IMAGES, parameters)
        alone = [augmentation.apply(batch, parameters) for batch in IMAGES.split(2)]
        torch.testing.assert_close(together, torch.cat(alone))
        assert not torch.equal(together[1:], together[:-1])


def test_each_image_can_have_its_own_strengths():
    same = IMAGES[:1].expand(5, -1, -1, -1)
    found = augmentation.apply(same, drawn("color_crop_cutout", 3, compose=True, count=5))
    assert len({tuple(image.flatten().tolist()) for image in found}) == 5


def test_the_generator_replays_a_draw():
    for strategy in (*OPERATIONS, ALL):
        first, again = (augmentation.apply(IMAGES, drawn(strategy, 5)) for _ in range(2))
        assert torch.equal(first, again)
    others = {tuple(augmentation.apply(IMAGES, drawn(ALL, s)).flatten().tolist()) for s in range(9)}
    assert len(others) > 5


def test_the_gradient_reaches_the_pixels():
    images = IMAGES[:2, :, :4, :4].double().requires_grad_()
    parameters = drawn(ALL, 1, size=4, compose=True)
    assert torch.autograd.gradcheck(lambda x: augmentation.apply(x, parameters), (images,))
