"""One set whose first images are sets too: all sizes by one pass."""

from functools import partial
from typing import Any

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from hypothesis import given
from hypothesis import strategies as st

from fedistill import config_file
from fedistill.distillers.base import Task
from fedistill.distillers.condensation import reference_of
from fedistill.distillers.dream import DREAM
from fedistill.distillers.nested import Nested, share_out, sizes_of
from fedistill.errors import ConfigError
from fedistill.losses.matching import matching_gradient, signature, signature_distance
from fedistill.models import build

QUICK: dict[str, Any] = {
    "iterations": 2, "width": 4, "depth": 2, "network_images": 8, "batch_real": 4,
    "augmentation": "none", "init": "random", "tiles": 1,
}  # fmt: skip


def task(count: int, ipc: int) -> Task:
    return Task(
        counts=[count] * 3,
        shard=tiny_images(60),
        teachers=[tiny_teacher()],
        models=[CONVNET],
        spec=tiny_spec(),
        seed=0,
        partition_id=0,
        device=CPU,
        ipc=ipc,
    )


@pytest.mark.parametrize("chunk", [128, 2])
def test_an_image_is_pulled_by_the_mean_of_the_sizes_it_is_in(chunk: int):
    """Size by size with a loop of its own, in place of one pass over parts."""
    options = Nested(**QUICK, subsets=(1, 3), chunk=chunk)
    asked = task(6, 6)
    reference = reference_of(asked)
    own = options.first(asked, reference)
    own.pixels.grad = torch.zeros_like(own.pixels)
    loop = options.condenser([asked], reference, [own])
    network = build(options.network, asked.spec, 0)
    real = asked.spec.normalise(asked.shard.images[asked.shard.labels == 1])
    wanted = signature(network, real, torch.ones(len(real), dtype=torch.int64))
    distance = partial(signature_distance, wanted=wanted, metric="mse", feature_weight=0.0)
    loop.prepare(network, 0)
    loss = loop.match_set(
        network, own, 1, lambda views: (views, torch.ones(len(views), dtype=torch.int64)), distance
    )

    expected = torch.zeros_like(own.pixels)
    alone = {}
    for size in (1, 3, 6):
        images = own.pixels.detach()[6 : 6 + size]
        labels = torch.ones(size, dtype=torch.int64)
        slope, of_size = matching_gradient(
            network, images, labels, distance, features=False, chunk=128
        )
        expected[6 : 6 + size] += size * slope
        alone[size] = of_size
    shares = torch.tensor([1 / 3, 1 / 2, 1 / 2, 1, 1, 1])[:, None, None, None]
    expected[6:12] *= shares
    assert expected.abs().max() > 0
    torch.testing.assert_close(own.pixels.grad, expected, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(loop.matched(loss[None]), alone)


def test_without_subsets_it_is_dream():
    nested, dream = (
        kind(**{**QUICK, "tiles": 2}).distill(task(2, 2)).images
        for kind in (partial(Nested, subsets=()), DREAM)
    )
    assert torch.equal(nested, dream)


def test_subsets_change_what_the_first_images_become():
    plain, nested = (
        Nested(**QUICK, lr=1.0, subsets=subsets).distill(task(4, 4)).images
        for subsets in ((), (1,))
    )
    assert not torch.equal(plain[0], nested[0])


def test_the_loss_of_every_size_is_noted_anew_in_each_step():
    found = Nested(**QUICK, subsets=(1, 2), lr=1e-9).distill(task(4, 4))
    assert set(found.curves) == {"matching/ipc-1", "matching/ipc-2", "matching/ipc-4"}
    for curve in found.curves.values():
        (_, first), (_, second) = curve
        assert second == pytest.approx(first, rel=0.5)  # not their sum


def test_subsets_left_out_are_the_smaller_sizes_of_the_config():
    distill: dict[str, Any] = {"name": "nested", "ipc": [2, 5, 9]}
    filled = config_file.from_dict({"distill": distill}).distill.options["subsets"]
    assert tuple(filled) == (2, 5)
    given = config_file.from_dict({"distill": {**distill, "subsets": [1]}}).distill.options
    assert tuple(given["subsets"]) == (1,)


def test_sizes_that_the_options_cannot_serve_are_refused():
    distill = {"name": "nested", "ipc": [1, 5, 9], "batch_synthetic": 2}
    with pytest.raises(ConfigError, match="subsets has 2 sizes and batch_synthetic is 2"):
        config_file.from_dict({"distill": distill})


def test_a_set_of_one_image_has_no_parts():
    found = Nested(**QUICK, subsets=(1, 10)).distill(task(1, 1))
    assert len(found.images) == 3


@pytest.mark.parametrize(
    ("count", "ipc", "subsets", "expected"),
    [
        (50, 50, (1, 10), [1, 10, 50]),
        (10, 50, (1, 10), [1, 2, 10]),  # of five clients: 2 of the first 10, and a first one
        (10, 50, (5, 6, 10), [1, 2, 10]),
        (1, 50, (1, 10), [1]),
        (10, 10, (1, 10, 50), [1, 10]),
        (7, 7, (), [7]),
        (20, 0, (1, 10), [1, 10, 20]),
    ],
)
def test_a_client_takes_its_share_of_every_size(
    count: int, ipc: int, subsets: tuple[int, ...], expected: list[int]
):
    assert sizes_of(count, ipc, subsets) == expected


@given(wanted=st.lists(st.integers(1, 300), min_size=1, max_size=6), most=st.integers(6, 200))
def test_views_are_dealt_to_all_parts_and_none_is_wasted(wanted: list[int], most: int):
    found = share_out(wanted, most)
    assert all(1 <= given <= asked for given, asked in zip(found, wanted, strict=True))
    assert sum(found) == min(most, sum(wanted))
    # No part gets more than another that still wants some.
    hungry = [given for given, asked in zip(found, wanted, strict=True) if given < asked]
    assert max(found) <= min(hungry, default=max(found)) + 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"subsets": (10, 1)}, r"subsets is \[10, 1\]; accepted: sizes from 1 up that rise"),
        ({"subsets": (1, 1)}, "subsets"),
        ({"subsets": (0, 1)}, "subsets"),
        (
            {"subsets": (1, 10), "batch_synthetic": 2},
            "batch_synthetic is 2; accepted: a view of each part",
        ),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        Nested(**options)
