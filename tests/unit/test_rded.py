"""RDED: which crops are kept, where they go, and what an image costs."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher, tiny_tree
from torch import Tensor, nn

from fedistill import config_file, crops, mosaic, planning, whitening
from fedistill.crops import ViewOptions
from fedistill.distillers import rded
from fedistill.distillers.base import Task
from fedistill.distillers.lic import LIC
from fedistill.distillers.rded import RDED
from fedistill.errors import ConfigError
from fedistill.images import ImageSet

SPEC, TEACHER = tiny_spec(), tiny_teacher()


def task(
    counts: Sequence[int], *teachers: nn.Module, shard: ImageSet | None = None, **changes: object
) -> Task:
    return Task(
        **{  # type: ignore[arg-type]
            "counts": counts,
            "shard": shard or tiny_images(20),
            "teachers": teachers or [TEACHER],
            "models": [CONVNET],
            "spec": SPEC,
            "seed": 0,
            "partition_id": 0,
            "device": CPU,
            **changes,
        }
    )


def flat(levels: Sequence[int], label: int = 0) -> ImageSet:
    """Images of one grey each: every crop of one looks like the whole."""
    pixels = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
    return ImageSet(pixels, torch.full((len(levels),), label))


class Brightness(nn.Module):
    """The surer of class 0 the brighter the image; remembers what it has seen, and how."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(images)
        surety = self.weight * images.mean((1, 2, 3))
        return torch.stack([surety, -surety, -surety], 1)


def test_the_best_images_come_first_whatever_the_order_of_the_shard():
    shard = flat([40, 200, 0, 160, 80, 240, 120])
    made = RDED().distill(task([4, 0, 0], Brightness(), shard=shard)).images
    assert made.flatten(1).float().std(1).max() == 0
    assert made[:, 0, 0, 0].tolist() == [240, 200, 160, 120]


def test_ranks_are_dealt_in_strides_and_tiles_are_laid_row_by_row():
    shard = flat([20 * level for level in range(12)])
    made = RDED(factor=2).distill(task([2, 0, 0], Brightness(), shard=shard)).images
    # Best first: 220, 200, 180, ...; composite 0 gets ranks 0, 2, 4, 6, composite 1 the others.
    best, other = [[220, 180], [140, 100]], [[200, 160], [120, 80]]
    assert made[:, 0, ::4, ::4].tolist() == [best, other]
    assert mosaic.split(made.float(), 2).flatten(1).std(1).max() == 0


def test_several_teachers_are_asked_for_the_mean_of_their_losses():
    # One is surest of white, the other of black; grey costs each log 3, and less than either in
    # the mean. The mean of their logits would choose black.
    white, black = Brightness(1.0), Brightness(-3.0)
    shard = flat([0, 102, 204])
    for teachers, level in (([white], 204), ([black], 0), ([white, black], 102)):
        assert RDED().distill(task([1, 0, 0], *teachers, shard=shard)).images[0, 0, 0, 0] == level


@pytest.mark.parametrize("factor", [1, 2])
def test_the_crops_are_those_of_a_plain_loop(factor: int):
    count, options = 2, RDED(factor=factor, crops=3, pool=9)
    asked = task([0, count, 0])
    mine = asked.shard.images[asked.shard.labels == 1]
    pool = torch.randperm(len(mine), generator=asked.stream("pool", 1))[:9].tolist()
    square = ViewOptions(scale=(0.08, 1.0), ratio=(1.0, 1.0))
    views = crops.draw(27, 8, square, asked.stream("crops", 1))
    side, kept = 8 // factor, []
    for number, place in enumerate(pool):
        scored = []
        for which in range(3):
            view = views.select(torch.tensor([3 * number + which]))
            assert view.boxes[0, 2] == view.boxes[0, 3], "square"
            image = crops.apply(mine[place][None].float(), view)
            patch = F.interpolate(image, (side, side), mode="bilinear", antialias=True).round()
            frame = torch.zeros(1, 1, 8, 8)
            start = (8 - side) // 2
            frame[:, :, start : start + side, start : start + side] = SPEC.normalise(patch)
            probability = asked.teachers[0](frame).softmax(1)[0, 1]
            scored.append((-float(probability.log()), patch[0]))
        kept.append(min(scored, key=lambda pair: pair[0]))
    kept.sort(key=lambda pair: pair[0])
    made = options.distill(asked).images
    for j in range(count):
        tiles = [kept[j + count * n][1] for n in range(factor**2)]
        rows = [torch.cat(tiles[factor * n : factor * (n + 1)], 2) for n in range(factor)]
        # Sums in another order may round to the next level.
        assert (made[j] - torch.cat(rows, 1)).abs().max() <= 1


@pytest.mark.parametrize(("factor", "edge"), [(1, 0), (2, 2), (4, 3)])
def test_small_crops_are_padded_with_the_mean_colour_and_not_enlarged(factor: int, edge: int):
    teacher = Brightness()
    RDED(factor=factor, pool=16).distill(task([1, 0, 0], teacher, shard=flat([255] * 16)))
    seen = torch.cat(teacher.seen)
    white = (1 - SPEC.mean[0]) / SPEC.std[0]
    inner = seen[:, :, edge : 8 - edge, edge : 8 - edge]
    torch.testing.assert_close(inner, torch.full_like(inner, white))
    assert seen.sum() == pytest.approx(white * inner.numel(), rel=1e-4)  # zero everywhere else


def test_a_crop_costs_one_forward_pass_and_none_backward(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rded, "_CHUNK", 16)
    teachers = [Brightness(), Brightness(2.0)]
    RDED(crops=4, pool=10).distill(task([3, 0, 2], *teachers))  # no gradient: see Brightness
    for teacher in teachers:
        assert sum(len(images) for images in teacher.seen) == 2 * 10 * 4
        assert max(len(images) for images in teacher.seen) == 16


def test_chunks_do_not_change_the_images(monkeypatch: pytest.MonkeyPatch):
    base = RDED(factor=2).distill(task([4, 1, 0])).images
    monkeypatch.setattr(rded, "_CHUNK", 7)
    other = RDED(factor=2).distill(task([4, 1, 0])).images
    assert (base.int() - other.int()).abs().max() <= 1


@pytest.mark.parametrize(("count", "looked_at"), [(1, 6), (6, 6), (9, 9)])
def test_the_pool_grows_to_what_a_share_needs(count: int, looked_at: int):
    teacher = Brightness()
    levels = [10 * level for level in range(12)]
    options = RDED(crops=1, pool=6)
    made = options.distill(task([count, 0, 0], teacher, shard=flat(levels))).images
    assert sum(len(images) for images in teacher.seen) == looked_at
    assert len(set(made[:, 0, 0, 0].tolist())) == count


def test_the_tiles_are_of_different_images_of_the_class():
    levels, others = [20 * level for level in range(12)], [20 * level + 7 for level in range(12)]
    both = [flat(levels), flat(others, 1)]
    shard = ImageSet(torch.cat([it.images for it in both]), torch.cat([it.labels for it in both]))
    made = RDED(factor=2).distill(task([3, 3, 0], Brightness(), shard=shard)).images
    tiles = mosaic.split(made, 2)[:, 0, 0, 0].tolist()
    assert sorted(tiles[:12]) == levels
    assert sorted(tiles[12:]) == others


@pytest.mark.parametrize("pool", [6, 300])
def test_a_later_request_leaves_out_the_images_that_are_used(pool: int):
    levels = [20 * level for level in range(12)]
    first = task([2, 0, 0], Brightness(), shard=flat(levels))
    later = replace(first, counts=[1, 0, 0], attempt=1, made=[[2, 0, 0]])
    made = [RDED(factor=2, pool=pool).distill(it).images for it in (first, later)]
    assert sorted(mosaic.split(torch.cat(made), 2)[:, 0, 0, 0].tolist()) == levels


def test_a_third_request_knows_what_the_second_has_used():
    shard, counts = flat([5 * level for level in range(48)]), [[2, 0, 0]] * 3
    first = task([2, 0, 0], Brightness(), shard=shard)
    asked = [replace(first, attempt=number, made=counts[:number]) for number in range(3)]
    made = torch.cat([RDED(factor=2, pool=16).distill(it).images for it in asked])
    assert len(mosaic.split(made, 2)[:, 0, 0, 0].unique()) == 3 * 2 * 4


def test_with_one_crop_an_image_small_sets_are_part_of_larger_ones():
    made = {count: RDED().distill(task([count, 0, 0])).images for count in (2, 5)}
    assert torch.equal(made[2], made[5][:2])


@pytest.mark.parametrize("change", ["seed", "partition_id", "attempt"])
def test_every_client_and_request_draws_its_own_crops(change: str):
    base = RDED().distill(task([3, 0, 0])).images
    other = RDED().distill(task([3, 0, 0], **{change: 1})).images
    assert all(not torch.equal(a, b) for a, b in zip(base, other, strict=True))


def test_crops_are_cut_from_pixels_and_whitened_for_the_teacher_alone():
    white = replace(SPEC, zca=whitening.fit(tiny_images(30).images))
    options = RDED(crops=2)
    indifferent = Brightness(0.0)  # the first crop of the first images, whatever it looks like
    plain = options.distill(task([2, 0, 0], indifferent)).images
    made = options.distill(replace(task([2, 0, 0], indifferent), spec=white)).images
    assert torch.equal(plain, made)
    before, after = torch.cat(indifferent.seen).split(20 * 2)
    pixels = (before * SPEC.std[0] + SPEC.mean[0]) * 255
    torch.testing.assert_close(after, white.normalise(pixels), rtol=0, atol=1e-3)


def test_whole_images_stay_whole():
    shard = tiny_images(5)
    made = RDED(scale=(1.0, 1.0)).distill(task([5, 0, 0], shard=shard)).images
    mine = [image.tolist() for image in shard.images[shard.labels == 0]]
    assert sorted(image.tolist() for image in made) == sorted(mine)


def test_progress_tells_the_loss_of_what_is_kept():
    told: list[tuple[int, int, float]] = []
    asked = task([2, 0, 1], Brightness(), shard=tiny_images(20))
    asked = replace(asked, report=lambda *it: told.append(it))
    assert RDED().distill(asked).curve == []  # nothing is optimised
    assert [it[:2] for it in told] == [(1, 2), (2, 2)]
    assert all(loss > 0 for *_, loss in told)


def test_all_broken_options_are_named_at_once():
    with pytest.raises(ValueError, match=r"factor is 0.*crops is 0.*pool is 0.*scale is \[0.5, 0"):
        RDED(factor=0, crops=0, pool=0, scale=(0.5, 0.2))


@pytest.mark.parametrize(
    ("part", "key"), [(RDED(factor=2), "distill.factor"), (LIC(), "distill.tiles")]
)
def test_mosaics_of_whitened_images_are_refused(part: RDED | LIC, key: str):
    """Students would be shown tiles that are not what was chosen or compensated."""
    white = replace(SPEC, zca=whitening.fit(tiny_images(30).images))
    with pytest.raises(ConfigError, match=f"data.zca is true and {key} is 2"):
        part.check(tiny_teacher(), CONVNET, white)
    part.check(tiny_teacher(), CONVNET, SPEC)
    RDED().check(tiny_teacher(), CONVNET, white)


def test_a_factor_that_does_not_divide_the_image_is_refused():
    tree = {**tiny_tree(), "distill": {"name": "rded", "factor": 3}}
    with pytest.raises(ConfigError, match=r"distill\.factor is 3.*accepted: \[1, 2, 4\]"):
        planning.check(config_file.from_dict(tree), SPEC)


def test_the_options_survive_a_config_file():
    config = config_file.loads("distill: {name: rded, factor: 2, scale: [0.2, 0.9]}")
    assert config_file.loads(config_file.dump(config)) == config
    assert planning.distiller_of(config) == RDED(factor=2, scale=(0.2, 0.9))
