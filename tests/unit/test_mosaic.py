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


@pytest.mark.parametrize("tiles", [2, 3, 4])
def test_expand_is_bilinear_and_so_is_its_gradient(tiles: int):
    images = torch.rand(2, 3, 12, 12, requires_grad=True)
    slope = torch.rand(2 * tiles**2, 3, 12, 12)
    plain = F.interpolate(mosaic.split(images, tiles), scale_factor=tiles, mode="bilinear")
    found = mosaic.expand(images, tiles)
    torch.testing.assert_close(found, plain)
    gradients = [torch.autograd.grad(it, images, slope)[0] for it in (found, plain)]
    torch.testing.assert_close(*gradients)


def test_no_backward_pass_of_expand_adds_in_random_order_on_a_gpu():
    found = mosaic.expand(torch.rand(1, 3, 8, 8, requires_grad=True), 2)
    names, todo = set(), [found.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(type(node).__name__)
            todo += [parent for parent, _ in node.next_functions]
    assert not [name for name in names if "Upsample" in name or "Grid" in name]
