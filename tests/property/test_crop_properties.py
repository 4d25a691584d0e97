"""Views over all options: in the frame, of the right area, and the same from the same seed."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill import crops
from fedistill.crops import ViewOptions, Views
from fedistill.seeding import generator

areas = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(lambda pair: tuple(sorted(pair)))
options = st.builds(
    ViewOptions,
    scale=areas,
    shift=st.integers(0, 4),
    flip=st.booleans(),
    mix=st.sampled_from(["none", "mixup", "cutmix"]),
    mix_alpha=st.floats(0.1, 3),
    mix_probability=st.floats(0, 1),
)
tiled = st.builds(
    lambda views, tiles, share: replace(views, tiles=tiles, tile_share=share),
    options,
    st.sampled_from([2, 4]),
    st.floats(0, 1),
)
seeds = st.integers(0, 10**6)
sizes = st.sampled_from([4, 8, 28, 32])


def same(first: Views, second: Views) -> bool:
    for name in ("boxes", "flips", "sealed", "partner"):
        one, other = getattr(first, name), getattr(second, name)
        if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
            return False
    return (first.own_share, first.cut) == (second.own_share, second.cut)


@given(options=options | tiled, seed=seeds, size=sizes, count=st.integers(1, 20))
def test_the_same_seed_gives_the_same_views(options, seed, size, count):
    first, second = (crops.draw(count, size, options, generator(seed)) for _ in range(2))
    assert same(first, second)


@given(options=options | tiled, seed=seeds, size=sizes)
def test_a_draw_takes_as_many_numbers_whatever_comes_of_it(options, seed, size):
    unmixed, mixed = generator(seed), generator(seed)
    for stream, probability in ((unmixed, 0.0), (mixed, 1.0)):
        choice = ViewOptions(**{**vars(options), "mix": "cutmix", "mix_probability": probability})
        crops.draw(7, size, choice, stream)
    assert torch.equal(torch.rand(3, generator=unmixed), torch.rand(3, generator=mixed))


@given(options=options | tiled, seed=seeds, size=sizes)
def test_boxes_stay_in_the_frame_up_to_the_shift(options, seed, size):
    top, left, height, width = crops.draw(50, size, options, generator(seed)).boxes.unbind(1)
    reach = options.shift / size + 1e-6
    assert (height > 0).all()
    assert (width > 0).all()
    for start, length in ((top, height), (left, width)):
        assert (start >= -reach).all()
        assert (start + length <= 1 + reach).all()


@given(options=options, seed=seeds)
def test_boxes_have_the_area_and_the_shape_that_was_asked_for(options, seed):
    _, _, height, width = crops.draw(50, 32, options, generator(seed)).boxes.unbind(1)
    area = height * width
    assert (area <= options.scale[1] + 1e-5).all()
    if options.scale[0] == 1:
        assert (area == 1).all()
        return
    uncut = (height < 1) & (width < 1)  # a box that was cut at the border is smaller
    assert (area[uncut] >= options.scale[0] - 1e-5).all()
    ratio = (width / height)[uncut]
    assert (ratio >= options.ratio[0] - 1e-4).all()
    assert (ratio <= options.ratio[1] + 1e-4).all()


@given(options=options | tiled, seed=seeds, size=sizes)
def test_views_stay_within_the_values_of_the_images(options, seed, size):
    images = torch.rand(4, 1, size, size, generator=generator(seed, "images"))
    views = crops.draw(4, size, options, generator(seed))
    shown = crops.render(images, views, torch.arange(4))
    low = 0.0 if options.shift else images.min().item()
    assert shown.shape == images.shape
    assert shown.min().item() >= low - 1e-4
    assert shown.max().item() <= images.max().item() + 1e-4


@given(seed=seeds, size=st.sampled_from([8, 28, 32, 33]), alpha=st.floats(0.1, 3))
def test_the_own_share_of_cutmix_is_exact(seed, size, alpha):
    views = crops.draw(4, size, ViewOptions(mix="cutmix", mix_alpha=alpha), generator(seed))
    shown = crops.mix(torch.ones(1, 1, size, size), torch.zeros(1, 1, size, size), views)
    assert abs(shown.double().mean().item() - views.own_share) < 1e-9
    assert 0 <= views.own_share <= 1


@given(options=tiled, seed=seeds, size=sizes)
def test_a_tile_shows_no_other_tile(options, seed, size):
    """Of mosaics with a colour for each tile, a tile's view has its colour, moved or not."""
    tiles = options.tiles
    colours = torch.arange(1.0, tiles**2 + 1).view(tiles, tiles)
    image = colours.repeat_interleave(size // tiles, 0).repeat_interleave(size // tiles, 1)
    views = replace(crops.draw(30, size, options, generator(seed)), partner=None)
    shown = crops.apply(image.expand(30, 1, size, size), views)[views.sealed].flatten(1)
    row, column = (views.boxes[views.sealed, :2] * tiles).round().long().unbind(1)
    torch.testing.assert_close(shown, colours[row, column][:, None].expand_as(shown))
