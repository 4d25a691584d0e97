"""Coresets: the greedy choices against plain loops, and what all of them promise."""

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch import Tensor, nn

from fedistill import config_file
from fedistill.distillers.base import Task
from fedistill.distillers.coreset import Coreset
from fedistill.distillers.herding import Herding, herd
from fedistill.distillers.k_center import KCenter, k_center
from fedistill.distillers.random import Random
from fedistill.errors import ModelError
from fedistill.images import ImageSet
from fedistill.seeding import generator

SPEC, TEACHER = tiny_spec(), tiny_teacher()
ALL = [Random(), Herding(), KCenter()]
every = pytest.mark.parametrize("coreset", ALL, ids=lambda part: type(part).__name__)


def task(
    counts: Sequence[int],
    teachers: Sequence[nn.Module] = (),
    shard: ImageSet | None = None,
    **changes: object,
) -> Task:
    return Task(
        **{  # type: ignore[arg-type]
            "counts": counts,
            "shard": shard or tiny_images(6),
            "teachers": teachers or [TEACHER],
            "models": [CONVNET],
            "spec": SPEC,
            "seed": 0,
            "partition_id": 0,
            "device": CPU,
            **changes,
        }
    )


def points(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=generator(seed, "points"))


class Pixels(nn.Module):
    """A teacher whose features are the normalised pixels, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.classifier = nn.Linear(64, 3)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.classifier(self.factor * images.flatten(1))


def herding_by_loops(features: Tensor, count: int) -> list[int]:
    """iCaRL's Algorithm 4, word for word."""
    rows = features.double()
    mean = rows.mean(0)
    chosen: list[int] = []
    for k in range(1, count + 1):
        distances = {}
        for place in range(len(rows)):
            if place not in chosen:
                total = sum((rows[i] for i in chosen), rows[place])
                distances[place] = float((mean - total / k).norm())
        chosen.append(min(distances, key=distances.__getitem__))
    return chosen


def radius(features: Tensor, centres: Sequence[int]) -> float:
    """How far the farthest point is from its nearest centre."""
    return max(min(float((row - features[i]).norm()) for i in centres) for row in features)


def k_center_by_loops(features: Tensor, count: int) -> list[int]:
    rows = features.double()
    mean = rows.mean(0)
    chosen = [min(range(len(rows)), key=lambda place: float((rows[place] - mean).norm()))]
    while len(chosen) < count:
        left = [place for place in range(len(rows)) if place not in chosen]
        chosen.append(
            max(left, key=lambda x: min(float((rows[x] - rows[i]).norm()) for i in chosen))
        )
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "size"), [(1, 20), (7, 20), (20, 20)])
def test_herding_is_the_plain_double_loop(seed: int, count: int, size: int):
    features = points(size, 5, seed)
    assert herd(features, count).tolist() == herding_by_loops(features, count)


def test_herding_by_hand():
    # Mean 1. Nearest to it: 2 (tie with 0 broken by place would be 0, so 0.1 makes it unequal);
    # then (x + 2) / 2 nearest 1 is x = 0.1.
    features = torch.tensor([[2.0], [0.1], [-3.0], [4.9]])
    assert features.mean() == 1
    assert herd(features, 4).tolist() == [1, 0, 2, 3]


def test_herding_looks_at_directions_not_lengths():
    features = points(12, 4)
    longer = features * torch.linspace(0.1, 9, 12)[:, None]
    assert torch.equal(Herding().order(features, 6), Herding().order(longer, 6))
    assert not torch.equal(herd(features, 6), herd(longer, 6))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "size"), [(1, 20), (7, 20), (20, 20)])
def test_k_center_is_the_plain_double_loop(seed: int, count: int, size: int):
    features = points(size, 5, seed)
    assert k_center(features, count).tolist() == k_center_by_loops(features, count)


@pytest.mark.parametrize("seed", range(6))
def test_k_center_is_at_most_twice_as_far_as_the_best_choice(seed: int):
    features = points(10, 2, seed)
    best = min(radius(features, centres) for centres in combinations(range(10), 3))
    assert best <= radius(features, k_center(features, 3).tolist()) <= 2 * best


def test_k_center_by_hand():
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0]])  # mean 3
    assert k_center(features, 5).tolist() == [3, 4, 0, 1, 2]


@pytest.mark.parametrize("choose", [herd, k_center])
def test_equal_images_are_different_choices(choose):
    features = torch.ones(5, 3)
    assert sorted(choose(features, 5).tolist()) == list(range(5))
    assert choose(features, 0).tolist() == []


@every
def test_the_images_are_different_real_ones_of_their_class(coreset: Coreset):
    shard = tiny_images(6)
    made = coreset.distill(task([6, 0, 4], shard=shard)).images
    for label, images in ((0, made[:6]), (2, made[6:])):
        mine = [image.tolist() for image in shard.images[shard.labels == label]]
        places = [mine.index(image.tolist()) for image in images]
        assert len(set(places)) == len(images)


@every
def test_the_first_k_are_the_choice_for_k_and_later_requests_go_on_behind_them(coreset: Coreset):
    whole = coreset.distill(task([5, 0, 0])).images
    for k in range(6):
        assert torch.equal(coreset.distill(task([k, 0, 0])).images, whole[:k])
        later = coreset.distill(task([5 - k, 0, 0], made=[[k, 0, 0]], attempt=1)).images
        assert torch.equal(later, whole[k:])


@every
def test_a_class_is_chosen_whatever_else_is_asked_for(coreset: Coreset):
    alone = coreset.distill(task([0, 2, 0])).images
    assert torch.equal(coreset.distill(task([3, 2, 1])).images[3:5], alone)


def test_random_images_depend_on_seed_client_and_class():
    shard = tiny_images(30)
    # The same pixels in every class: which are taken is then a matter of the class alone.
    same = ImageSet(shard.images[:30].repeat(3, 1, 1, 1), torch.arange(3).repeat_interleave(30))
    base = Random().distill(task([9, 9, 9], shard=same)).images
    assert not torch.equal(base[:9], base[9:18])
    for change in ({"seed": 1}, {"partition_id": 1}):
        other = Random().distill(task([9, 9, 9], shard=same, **change)).images
        assert not torch.equal(base, other)


@pytest.mark.parametrize("coreset", [Herding(), KCenter()], ids=["herding", "k_center"])
def test_the_features_are_the_teachers_one_forward_pass_each(coreset: Coreset):
    shard, teacher = tiny_images(6), Pixels()
    made = coreset.distill(task([0, 3, 0], [teacher], shard)).images
    assert teacher.seen == 6
    mine = shard.images[shard.labels == 1]
    pixels = SPEC.normalise(mine).flatten(1)
    expected = {
        Herding: lambda: herding_by_loops(pixels / pixels.norm(dim=1, keepdim=True), 3),
        KCenter: lambda: k_center_by_loops(pixels, 3),
    }[type(coreset)]()
    assert torch.equal(made, mine[torch.tensor(expected)])


@pytest.mark.parametrize("coreset", [Herding(), KCenter()], ids=["herding", "k_center"])
def test_several_teachers_weigh_alike_however_long_their_features(coreset: Coreset):
    small = coreset.distill(task([4, 4, 4], [TEACHER, Pixels(1.0)])).images
    large = coreset.distill(task([4, 4, 4], [TEACHER, Pixels(1e3)])).images
    alone = coreset.distill(task([4, 4, 4], [Pixels()])).images
    assert torch.equal(small, large)
    assert not torch.equal(large, alone)


def test_a_network_without_a_classifier_is_refused_by_those_that_need_its_features():
    model = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    Random().check(model, CONVNET, SPEC)
    for coreset in (Herding(), KCenter()):
        with pytest.raises(ModelError, match="no linear layer"):
            coreset.check(model, CONVNET, SPEC)


def test_a_config_may_write_k_center_with_a_hyphen():
    config = config_file.from_dict({"distill": {"name": "k-center"}})
    assert config.distill.name == "k_center"
