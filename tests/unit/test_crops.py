"""Views: identity, shift, mirror, crop, tile and mixing against torch's own functions."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedistill import crops
from fedistill.crops import ViewOptions, Views
from fedistill.seeding import generator

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EVERYTHING = torch.arange(5)


def one_box(*shares: float, flip: bool = False, count: int = 5) -> Views:
    return Views(torch.tensor([shares]).repeat(count, 1), torch.full((count,), flip))


def pixel_box(top: int, left: int, height: int, width: int, size: int = 8) -> Views:
    return one_box(top / size, left / size, height / size, width / size)


def sampled(images: Tensor, views: Views, size: int | None = None) -> Tensor:
    """The same views by torch's sampler, borders repeated; `size` pixels wide, or as the images."""
    size = size or images.shape[-1]
    grid = (torch.arange(size) + 0.5) / size
    top, left, height, width = views.boxes.unbind(1)
    rows = 2 * (top[:, None] + height[:, None] * grid) - 1
    columns = 2 * (left[:, None] + width[:, None] * grid) - 1
    columns = torch.where(views.flips[:, None], columns.flip(1), columns)
    shape = (len(images), size, size)
    where = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], -1)
    return F.grid_sample(images, where, padding_mode="border", align_corners=False)


@pytest.mark.parametrize("size", [4, 7, 8, 28, 32, 64, 224])
def test_the_whole_frame_gives_back_the_image_exactly(size: int):
    images = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(crops.apply(images, one_box(0, 0, 1, 1, count=2)), images)


def test_options_left_alone_draw_the_identity():
    views = crops.draw(5, 8, ViewOptions(), generator(0))
    assert torch.equal(crops.render(IMAGES, views, EVERYTHING), IMAGES)


def test_mirroring_reverses_the_columns():
    assert torch.equal(crops.apply(IMAGES, one_box(0, 0, 1, 1, flip=True)), IMAGES.flip(-1))


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, -1), (2, 3), (-4, 4), (-1, -2)])
def test_an_integer_shift_is_a_crop_of_the_zero_padded_image(size: int, down: int, right: int):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    views = one_box(down / size, right / size, 1, 1, count=2)
    padded = F.pad(images, (4, 4, 4, 4))
    expected = padded[..., 4 + down : 4 + down + size, 4 + right : 4 + right + size]
    torch.testing.assert_close(crops.apply(images, views), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(2, 1, 4, 6), (0, 0, 4, 4), (3, 3, 5, 5), (1, 0, 2, 8)])
def test_a_crop_is_what_the_sampler_of_torch_gives(box: tuple[int, int, int, int], flip: bool):
    views = pixel_box(*box)
    views = Views(views.boxes, torch.full((5,), flip))
    torch.testing.assert_close(
        crops.apply(IMAGES, views), sampled(IMAGES, views), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("box", [(2, 1, 4, 4), (0, 0, 4, 4), (4, 4, 4, 4), (0, 4, 4, 4)])
def test_a_crop_of_whole_pixels_is_interpolate_of_the_slice(box: tuple[int, int, int, int]):
    top, left, height, width = box
    piece = IMAGES[..., top : top + height, left : left + width]
    expected = F.interpolate(piece, size=(8, 8), mode="bilinear", align_corners=False)
    found = crops.apply(IMAGES, pixel_box(*box))
    # At the box's border the image goes on, where the slice ends: only there they may differ.
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    if top == 0:
        torch.testing.assert_close(found[..., 0, 1:-1], expected[..., 0, 1:-1])
    if left + width == 8:
        torch.testing.assert_close(found[..., 1:-1, -1], expected[..., 1:-1, -1])


def test_each_image_has_its_own_view():
    views = crops.draw(5, 8, ViewOptions(scale=(0.3, 0.9), flip=True), generator(3))
    together = crops.apply(IMAGES, views)
    for number in range(5):
        index = torch.tensor([number])
        alone = crops.apply(IMAGES[index], views.select(index))
        torch.testing.assert_close(together[index], alone)


def test_the_gradient_reaches_the_pixels():
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    options = ViewOptions(scale=(0.4, 0.8), shift=1, flip=True)
    views = crops.draw(2, 4, options, generator(4))
    assert torch.autograd.gradcheck(lambda x: crops.apply(x, views), (images,))


def drawn(mix: str, seed: int, size: int = 8, **options: float) -> Views:
    return crops.draw(5, size, ViewOptions(mix=mix, **options), generator(seed))  # type: ignore[arg-type]


def test_the_partner_is_a_permutation():
    partners = [drawn("mixup", seed).partner for seed in range(20)]
    assert all(partner is not None for partner in partners)
    assert all(sorted(partner.tolist()) == list(range(5)) for partner in partners)  # type: ignore[union-attr]
    assert len({tuple(partner.tolist()) for partner in partners}) > 10  # type: ignore[union-attr]


def test_the_own_share_of_cutmix_is_its_share_of_the_pixels():
    shares = []
    for seed in range(30):
        views = drawn("cutmix", seed)
        mixed = crops.mix(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), views)
        assert mixed.mean().item() == pytest.approx(views.own_share, abs=1e-6)
        shares.append(views.own_share)
    assert len(set(shares)) > 10
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_mixup_averages_with_the_partner():
    views = drawn("mixup", 1)
    assert views.partner is not None
    assert 0 < views.own_share < 1
    expected = views.own_share * IMAGES + (1 - views.own_share) * IMAGES[views.partner]
    torch.testing.assert_close(crops.render(IMAGES, views, EVERYTHING), expected)


def test_cutmix_pastes_the_partners_own_view():
    options = ViewOptions(scale=(0.3, 0.6), flip=True, mix="cutmix")
    views = next(
        views
        for views in (crops.draw(5, 8, options, generator(seed)) for seed in range(20))
        if 0.2 < views.own_share < 0.8
    )
    assert views.cut is not None
    assert views.partner is not None
    top, left, bottom, right = views.cut
    shown = crops.apply(IMAGES, views)
    expected = shown.clone()
    expected[..., top:bottom, left:right] = shown[views.partner][..., top:bottom, left:right]
    torch.testing.assert_close(crops.render(IMAGES, views, EVERYTHING), expected)


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_rendering_some_images_is_a_part_of_rendering_all(mix: str):
    views = crops.draw(5, 8, ViewOptions(scale=(0.5, 1.0), mix=mix), generator(9))  # type: ignore[arg-type]
    index = torch.tensor([3, 0, 3])
    some, everything = (crops.render(IMAGES, views, i) for i in (index, EVERYTHING))
    torch.testing.assert_close(some, everything[index])


def test_the_share_of_mixed_draws_follows_the_probability():
    mixed = [drawn("cutmix", seed, mix_probability=0.25).partner is not None for seed in range(400)]
    assert 0.18 < sum(mixed) / len(mixed) < 0.32
    assert all(drawn("cutmix", seed, mix_probability=0.0).partner is None for seed in range(20))


def test_half_of_the_views_are_mirrored():
    flips = crops.draw(2000, 8, ViewOptions(flip=True), generator(0)).flips
    assert 0.46 < flips.float().mean().item() < 0.54
    assert not crops.draw(2000, 8, ViewOptions(), generator(0)).flips.any()


def test_shifts_are_whole_pixels_up_to_the_most_in_every_direction():
    boxes = crops.draw(2000, 8, ViewOptions(shift=2), generator(0)).boxes
    for offset in boxes[:, :2].T:
        assert sorted(set((offset * 8).tolist())) == [-2, -1, 0, 1, 2]


def test_options_survive_a_dict():
    options = ViewOptions(scale=(0.2, 0.9), shift=3, mix="mixup", mix_alpha=0.8)
    tree = {**vars(options), "scale": [0.2, 0.9], "ratio": list(options.ratio)}
    assert ViewOptions.from_dict(tree) == options


def mosaics(tiles: int, pixels: int, count: int = 2) -> Tensor:
    """Mosaics of tiles x tiles images of so many pixels a side."""
    size = tiles * pixels
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(tiles))


def sealed(tiles: int, which: list[int], flip: bool = False) -> Views:
    """The tiles with these numbers, one for each image."""
    boxes = crops.tile_boxes(tiles)[which]
    every = torch.full((len(which),), True)
    return Views(boxes, every if flip else ~every, every)


def cut_out(images: Tensor, tiles: int, number: int) -> Tensor:
    pixels = images.shape[-1] // tiles
    top, left = (place * pixels for place in divmod(number, tiles))
    return images[..., top : top + pixels, left : left + pixels]


TILINGS = [(2, 4), (2, 14), (2, 16), (2, 112), (3, 3), (3, 11), (4, 8), (5, 7), (7, 4), (6, 1)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("tiles", "pixels"), TILINGS)
def test_a_tile_view_is_the_tile_cut_out_and_then_enlarged(tiles: int, pixels: int, flip: bool):
    images = mosaics(tiles, pixels)
    for number in {0, 1, tiles, tiles**2 // 2, tiles**2 - 1}:
        piece = cut_out(images, tiles, number)
        expected = F.interpolate(
            piece, size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        found = crops.apply(images, sealed(tiles, [number] * 2, flip))
        expected = expected.flip(-1) if flip else expected
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("tiles", "pixels"), TILINGS)
def test_nothing_of_the_next_tile_shows_in_a_tile_view(tiles: int, pixels: int):
    for number in range(tiles**2):
        images = torch.full((1, 1, tiles * pixels, tiles * pixels), 1e30)
        cut_out(images, tiles, number).zero_()
        assert crops.apply(images, sealed(tiles, [number])).count_nonzero() == 0


@pytest.mark.parametrize(("down", "right"), [(0.1, 0), (-0.25, 0.3), (0.49, -0.49)])
@pytest.mark.parametrize(("tiles", "pixels"), [(2, 4), (2, 14), (3, 3), (3, 11)])
def test_a_tile_that_is_moved_repeats_its_own_border(
    tiles: int, pixels: int, down: float, right: float
):
    images = mosaics(tiles, pixels, count=1)
    for number in range(tiles**2):
        still = sealed(tiles, [number])
        moved = replace(still, boxes=still.boxes + torch.tensor([[down, right, 0, 0]]) / tiles)
        piece = cut_out(images, tiles, number)
        expected = sampled(piece, one_box(down, right, 1, 1, count=1), images.shape[-1])
        torch.testing.assert_close(crops.apply(images, moved), expected, rtol=0, atol=1e-4)


def test_shifts_move_tiles_by_less_than_half_of_them():
    options = ViewOptions(shift=7, tiles=2, tile_share=1.0)
    views = crops.draw(2000, 8, options, generator(3))
    place = views.boxes[:, :2] * 2
    moves = place - (place + 0.5).floor().clamp(0, 1)
    assert 0.48 < moves.abs().max() < 0.5
    few = crops.draw(2000, 8, replace(options, shift=2), generator(3)).boxes[:, :2] * 2
    assert set(((few - few.round()) * 8).round().unique().tolist()) == {-2, -1, 0, 1, 2}


def test_an_open_box_of_the_same_place_does_look_across_the_seam():
    images = mosaics(2, 4)
    closed = sealed(2, [0, 3])
    differs = crops.apply(images, Views(closed.boxes, closed.flips)) != crops.apply(images, closed)
    assert differs[0, 0].nonzero().min() == 0
    assert differs[0, 0, -1].all()  # at the seam
    assert not differs[0, 0, :-1, :-1].any()
    assert differs[1, 0, 0].all()
    assert not differs[1, 0, 1:, 1:].any()


def test_the_tiles_are_numbered_row_by_row():
    assert crops.tile_boxes(2).tolist() == [
        [0, 0, 0.5, 0.5], [0, 0.5, 0.5, 0.5], [0.5, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5],
    ]  # fmt: skip
    assert crops.tile_boxes(1).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("tiles", [2, 3])
def test_a_share_of_the_views_shows_each_tile_as_often(tiles: int, share: float):
    options = ViewOptions(scale=(0.3, 0.9), flip=True, tiles=tiles, tile_share=share)
    views = crops.draw(9000, 12, options, generator(1))
    assert views.sealed is not None
    assert views.sealed.float().mean().item() == pytest.approx(share, abs=0.02)
    shown = views.boxes[views.sealed]
    for box in crops.tile_boxes(tiles) if share else []:
        mine = (shown == box).all(1).float().mean().item()
        assert mine == pytest.approx(1 / tiles**2, abs=0.025)
    others = views.boxes[~views.sealed][:, None] == crops.tile_boxes(tiles)
    assert not others.all(-1).any()
    if share:
        assert 0.4 < views.flips[views.sealed].float().mean().item() < 0.6


def test_views_that_show_no_tile_are_those_of_images_that_are_no_mosaics():
    plain = ViewOptions(scale=(0.3, 0.9), shift=1, flip=True)
    tiled = replace(plain, tiles=2, tile_share=0.5)
    first, second = (crops.draw(50, 8, options, generator(2)) for options in (plain, tiled))
    assert first.sealed is None
    assert second.sealed is not None
    assert torch.equal(first.flips, second.flips)
    assert torch.equal(first.boxes[~second.sealed], second.boxes[~second.sealed])


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_tiles_are_mixed_with_the_view_of_the_partner(mix: str):
    options = ViewOptions(scale=(0.4, 0.9), tiles=2, tile_share=0.5, mix=mix)  # type: ignore[arg-type]
    views = next(
        views
        for views in (crops.draw(5, 8, options, generator(seed)) for seed in range(20))
        if 0.2 < views.own_share < 0.8
    )
    assert views.partner is not None
    assert views.sealed is not None
    assert 0 < views.sealed.sum() < 5
    shown = crops.apply(IMAGES, views)
    for number in views.sealed.nonzero()[:, 0].tolist():
        (tile,) = (crops.tile_boxes(2) == views.boxes[number]).all(1).nonzero()[:, 0].tolist()
        piece = cut_out(IMAGES[number : number + 1], 2, tile)
        expected = F.interpolate(piece, size=(8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(shown[number : number + 1], expected)
    expected = crops.mix(shown, shown[views.partner], views)
    torch.testing.assert_close(crops.render(IMAGES, views, EVERYTHING), expected)
    some = torch.tensor([4, 1, 4])
    torch.testing.assert_close(crops.render(IMAGES, views, some), expected[some])


def test_a_tile_keeps_the_colour_beyond_the_frame_out():
    views, outside = sealed(2, [0, 3]), torch.full((3, 1, 1), -9.0)
    images = mosaics(2, 4)
    torch.testing.assert_close(
        crops.apply(images, views, outside), crops.apply(images, views), rtol=0, atol=1e-5
    )


def test_the_gradient_of_a_tile_reaches_its_pixels_alone():
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    views = sealed(2, [1, 2])
    assert torch.autograd.gradcheck(lambda x: crops.apply(x, views), (images,))
    (gradient,) = torch.autograd.grad(crops.apply(images, views).sum(), images)
    assert (cut_out(gradient[:1], 2, 1) > 0).all()
    assert gradient[0].count_nonzero() == 4


def test_a_card_speaks_of_tiles_only_where_there_are_some():
    """Cards and hashes of sets made before there were mosaics stay valid."""
    old = {"scale", "ratio", "shift", "flip", "mix", "mix_alpha", "mix_probability"}
    plain = ViewOptions(scale=(0.2, 0.9), mix="cutmix")
    assert plain.as_dict().keys() == old
    assert ViewOptions.from_dict(json.loads(json.dumps(plain.as_dict()))) == plain
    tiled = replace(plain, tiles=2, tile_share=0.5)
    assert tiled.as_dict().keys() == old | {"tiles", "tile_share"}
    assert ViewOptions.from_dict(json.loads(json.dumps(tiled.as_dict()))) == tiled
