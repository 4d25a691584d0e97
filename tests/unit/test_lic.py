"""LIC: the choice, the loss, and what an image costs."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.distillers.base import Task
from fedistill.distillers.lic import LIC
from fedistill.errors import ConfigError, ModelError
from fedistill.images import ImageSet
from fedistill.losses.base import Regularizer, Surroundings
from fedistill.models import build

SPEC = tiny_spec()


def task(counts: list[int], *teachers: nn.Module, shard: ImageSet | None = None) -> Task:
    return Task(
        counts=counts,
        shard=shard or tiny_images(20),
        teachers=teachers or [tiny_teacher()],
        models=[CONVNET],
        spec=SPEC,
        seed=0,
        partition_id=0,
        device=CPU,
    )


class Counting(nn.Module):
    """Wraps a teacher and counts the images that pass with and without a gradient to follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.features = inner.features
        self.classifier = inner.classifier
        self.plain = self.followed = 0

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            self.followed += len(images)
        else:
            self.plain += len(images)
        return self.classifier(self.features(images).flatten(1))


class Brightness(nn.Module):
    """A teacher that is the surer of class 0 the brighter the image."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.AvgPool2d(4)
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        mean = self.weight * self.map(images).mean((1, 2, 3))
        return torch.stack([mean, -mean, -mean], 1)


def test_a_mosaic_holds_the_images_the_teacher_is_surest_about_best_and_worst_mixed():
    levels = torch.arange(12, dtype=torch.uint8) * 20
    shard = ImageSet(levels[:, None, None, None].repeat(1, 1, 8, 8), torch.zeros(12).long())
    made = LIC(iterations=0).distill(task([2, 0, 0], Brightness(), shard=shard)).images
    tiles = mosaic.split(made.float(), 2).mean((1, 2, 3)).view(2, 4)
    assert tiles.tolist() == [[220, 180, 140, 100], [200, 160, 120, 80]]


def test_a_later_request_leaves_out_the_images_that_are_used():
    levels = torch.arange(12, dtype=torch.uint8) * 20
    shard = ImageSet(levels[:, None, None, None].repeat(1, 1, 8, 8), torch.zeros(12).long())
    first = task([2, 0, 0], Brightness(), shard=shard)
    later = replace(first, counts=[1, 0, 0], attempt=1, made=[[2, 0, 0]])
    made = torch.cat([LIC(iterations=0).distill(it).images for it in (first, later)])
    used = mosaic.split(made.float(), 2).mean((1, 2, 3))
    assert sorted(used.tolist()) == levels.tolist()


def test_a_third_request_knows_what_the_second_has_used():
    levels = torch.arange(48, dtype=torch.uint8) * 5
    shard = ImageSet(levels[:, None, None, None].repeat(1, 1, 8, 8), torch.zeros(48).long())
    counts = [[2, 0, 0]] * 3
    first = task([2, 0, 0], Brightness(), shard=shard)
    asked = [replace(first, attempt=number, made=counts[:number]) for number in range(3)]
    made = torch.cat([LIC(iterations=0, pool=1).distill(it).images for it in asked])
    assert len(mosaic.split(made.float(), 2).mean((1, 2, 3)).unique()) == 3 * 2 * 4


@dataclass(frozen=True, kw_only=True)
class Noted(Regularizer):
    """Notes how often it is prepared."""

    prepared_for: list[int]

    def prepared(self, around: Surroundings) -> Regularizer:
        self.prepared_for.append(around.seed)
        return self

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return images.square().mean()


def test_terms_are_prepared_once_for_all_batches():
    noted = Noted(prepared_for=[])
    given = replace(task([2, 1, 1]), regularizers=[(1.0, noted)])
    LIC(iterations=1, batch_size=1).distill(given)
    assert noted.prepared_for == [given.seed]


def test_without_iterations_a_tile_is_the_shrunken_image():
    shard = tiny_images(4)
    mine = ImageSet(shard.images[:4], torch.zeros(4).long())
    made = LIC(iterations=0).distill(task([1, 0, 0], shard=mine)).images
    shrunken = mosaic.shrink(mine.images.float(), 2).round()
    for tile in mosaic.split(made.float(), 2):
        assert min((tile - other).abs().max() for other in shrunken) <= 1


@pytest.mark.parametrize("layer", ["last", "features.0", "logits"])
def test_the_first_loss_is_the_formula(layer: str):
    teacher = tiny_teacher()
    # crop 1 and no mirror: g is the identity.
    options = LIC(iterations=1, crop=1.0, layer=layer)
    curve = options.distill(task([1, 1, 1], teacher)).curve
    plain = LIC(iterations=0).distill(task([1, 1, 1], teacher)).images
    start = mosaic.split(SPEC.normalise(plain), 2)
    h = {
        "last": lambda x: teacher.features(x),  # type: ignore[operator]
        "features.0": lambda x: teacher.features[0](x),  # type: ignore[index]
        "logits": teacher,
    }[layer]
    shard, total, elements = tiny_images(20), 0.0, 0
    real = SPEC.normalise(shard.images)
    small = mosaic.shrink(real, 2)
    for tile in start:
        original = int((small - tile).abs().amax((1, 2, 3)).argmin())
        enlarged = F.interpolate(tile[None], scale_factor=2, mode="bilinear")
        difference = h(real[original : original + 1]) - h(enlarged)
        total += float(difference.square().sum())
        elements += difference.numel()
    assert curve == [(0, pytest.approx(total / elements, rel=0.02))]  # the start is in uint8


def test_the_tiles_come_nearer_to_the_originals():
    curve = LIC(iterations=60, crop=1.0).distill(task([3, 3, 3])).curve
    assert curve[-1][1] < 0.5 * curve[0][1]


def test_a_mosaic_does_not_depend_on_those_beside_it():
    # The streams are the batches' own, so only the choice of images and g are left: g identity.
    both = LIC(iterations=20, crop=1.0, batch_size=2).distill(task([2, 0, 0])).images
    alone = LIC(iterations=20, crop=1.0, batch_size=1).distill(task([2, 0, 0])).images
    assert (both.int() - alone.int()).abs().max() <= 1


def test_an_image_costs_800_forward_and_800_forward_and_backward_passes():
    teacher = Counting(tiny_teacher())
    LIC(pool=16).distill(task([1, 0, 0], teacher))
    looked = 2  # at the network's layers, on a black image, and never with a gradient
    assert teacher.followed == 800
    assert 800 <= teacher.plain <= 800 + 16 + looked


def test_several_teachers_take_turns():
    teachers = [Counting(tiny_teacher(0)), Counting(tiny_teacher(1))]
    LIC(iterations=6).distill(task([1, 0, 0], *teachers))
    assert [teacher.followed for teacher in teachers] == [12, 12]


def test_a_layer_or_tiles_that_do_not_fit_are_refused():
    model = build(CONVNET, SPEC, 0)
    with pytest.raises(ModelError, match=r"layer 'layer9'.*known: .*last"):
        LIC(layer="layer9").check(model, CONVNET, SPEC)
    with pytest.raises(ConfigError, match=r"tiles is 3.*accepted: \[1, 2, 4\]"):
        LIC(tiles=3).check(model, CONVNET, SPEC)


def test_all_broken_options_are_named_at_once():
    with pytest.raises(ValueError, match=r"tiles is 0; .*; lr is 0; .*; crop is 2"):
        LIC(lr=0, tiles=0, crop=2)
