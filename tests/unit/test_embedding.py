"""t-SNE of real and synthetic images, and the pictures drawn of it."""

import torch
from fakes import tiny_images, tiny_set, tiny_spec, tiny_teacher
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from fedistill import figures
from fedistill.embedding import embed

SPEC = tiny_spec()


def test_real_images_come_first_and_labels_stay_with_their_images():
    found = embed(tiny_teacher(), tiny_set(5), tiny_images(20), tiles=1, seed=0)
    assert found.real == 60
    assert found.points.shape == (60 + 15, 2)
    assert found.labels[60:].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    # The tiny classes are easy: a point's nearest neighbour is mostly of its class.
    distances = torch.cdist(found.points, found.points).fill_diagonal_(torch.inf)
    assert (found.labels[distances.argmin(1)] == found.labels).float().mean() > 0.8


def test_each_tile_of_a_mosaic_is_a_point():
    found = embed(tiny_teacher(), tiny_set(2), tiny_images(10), tiles=2, seed=0)
    assert len(found.points) - found.real == 4 * 6
    assert found.labels[found.real :].tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_the_same_seed_gives_the_same_points():
    first, second = (
        embed(tiny_teacher(), tiny_set(2), tiny_images(10), tiles=1, seed=3) for _ in range(2)
    )
    assert torch.equal(first.points, second.points)


def test_large_sets_are_thinned():
    found = embed(tiny_teacher(), tiny_set(300), tiny_images(300), tiles=1, seed=0)
    assert found.real == 400
    assert len(found.points) == 800


def test_the_picture_has_every_point_once():
    found = embed(tiny_teacher(), tiny_set(2), tiny_images(10), tiles=1, seed=0)
    figure = figures.feature_map(found, SPEC.class_names, "title")
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    drawn = [it for it in axes.collections if isinstance(it, PathCollection)]
    assert sum(len(it.get_offsets()) for it in drawn) == len(found.points)


def test_curves_of_values_may_be_negative():
    figure = figures.value_curves({"real-1": [(0, -0.5), (9, 1.5)]}, "t", "step", "nats")
    (axes,) = figure.axes
    assert axes.get_yscale() == "linear"
    assert axes.lines[0].get_ydata().tolist() == [-0.5, 1.5]
