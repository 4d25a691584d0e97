"""Mosaics: what is laid out comes back, and no tile sees its neighbour."""

import pytest
import torch
import torch.nn.functional as F

from fedistill import mosaic


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_split_undoes_assemble(tiles: int):
    parts = torch.rand(3 * tiles**2, 2, 8 // tiles, 8 // tiles)
    whole = mosaic.assemble(parts, tiles)
    assert whole.shape == (3, 2, 8, 8)
    assert torch.equal(mosaic.split(whole, tiles), parts)


def test_tiles_are_laid_out_row_by_row():
    parts = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    whole = mosaic.assemble(parts, 2)[0, 0]
    assert whole[::2, ::2].tolist() == [[0, 1], [2, 3]]


def test_shrink_takes_the_mean_of_what_a_pixel_covers_where_the_image_is_smooth():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    inner = mosaic.shrink(ramp, 2)[0, 0, :, 1:-1]
    assert torch.allclose(inner, torch.tensor([2.5, 4.5]).expand(4, 2))
    assert torch.equal(mosaic.shrink(ramp, 1), ramp)


def test_an_expanded_tile_knows_nothing_of_the_others():
    images = torch.rand(1, 1, 8, 8)
    changed = images.clone()
    changed[..., :4, :4] = 9.0
    before, after = mosaic.expand(images, 2), mosaic.expand(changed, 2)
    assert before.shape == (4, 1, 8, 8)
    assert torch.equal(before[1:], after[1:])
    alone = F.interpolate(images[..., 4:, :4], scale_factor=2, mode="bilinear")
    assert torch.allclose(before[2], alone[0])
