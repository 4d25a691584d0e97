"""Synthetic sets: what is hashed, what is written, how views replay."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import run_python, tiny_images, tiny_set, tiny_spec
from odd_sets import COLOUR, WHITENED, change

from fedistill import crops, whitening
from fedistill.images import DataSpec, ImageSet
from fedistill.seeding import generator
from fedistill.sets import SoftLabels, SyntheticSet


@pytest.mark.parametrize("views", [0, 4])
@pytest.mark.parametrize("spec", [tiny_spec(), COLOUR, WHITENED], ids=["grey", "colour", "zca"])
def test_a_set_comes_back_bit_for_bit(tmp_path: Path, views: int, spec: DataSpec):
    before = tiny_set(views=views, spec=spec)
    before.save(tmp_path / "set")
    after = SyntheticSet.load(tmp_path / "set")
    assert after.spec == before.spec
    for name in ("images", "hard_labels", "clients"):
        old, new = getattr(before, name), getattr(after, name)
        assert old.dtype == new.dtype
        assert torch.equal(old, new)
    assert after.card == before.card
    assert after.sha256 == before.sha256
    assert (after.soft_labels is None) == (views == 0)
    if before.soft_labels and after.soft_labels:
        assert torch.equal(before.soft_labels.logits, after.soft_labels.logits)
        assert after.soft_labels.logits.dtype == torch.float16
        assert after.soft_labels.options == before.soft_labels.options


def test_a_set_from_before_there_were_tiles_is_still_itself(tmp_path: Path):
    before = tiny_set(views=4)
    before.save(tmp_path / "set")
    options = json.loads((tmp_path / "set" / "card.json").read_text())["views"]["options"]
    assert not {"tiles", "tile_share"} & options.keys()
    assert SyntheticSet.load(tmp_path / "set").sha256 == before.sha256


def test_the_views_of_a_set_with_tiles_come_back(tmp_path: Path):
    plain = tiny_set(views=4)
    assert plain.soft_labels is not None
    options = replace(plain.soft_labels.options, tiles=2, tile_share=0.5)
    before = replace(plain, soft_labels=replace(plain.soft_labels, options=options))
    before.save(tmp_path / "set")
    after = SyntheticSet.load(tmp_path / "set")
    assert after.sha256 == before.sha256 != plain.sha256
    assert after.soft_labels is not None
    assert after.soft_labels.options == options
    replayed, drawn = (s.soft_labels.views(1, 8) for s in (after, before))  # type: ignore[union-attr]
    assert torch.equal(replayed.sealed, drawn.sealed)  # type: ignore[arg-type]
    assert torch.equal(replayed.boxes, drawn.boxes)


@pytest.mark.parametrize("spec", [tiny_spec(), WHITENED], ids=["plain", "zca"])
def test_saving_what_was_loaded_writes_the_same_files(tmp_path: Path, spec: DataSpec):
    tiny_set(views=2, spec=spec).save(tmp_path / "first")
    SyntheticSet.load(tmp_path / "first").save(tmp_path / "second")
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_loading_needs_torch_and_safetensors_alone(tmp_path: Path):
    synthetic = tiny_set(views=3)
    synthetic.save(tmp_path / "set")
    code = f"""
from fedistill.sets import SyntheticSet
loaded = SyntheticSet.load({str(tmp_path / "set")!r})
views = loaded.soft_labels.views(1, 8)
print(loaded.sha256, len(loaded), float(views.boxes.sum()))
"""
    blocked = ("flwr", "mlflow", "pydantic", "yaml", "torchvision", "datasets", "flwr_datasets")
    more = ("sklearn", "matplotlib", "typer", "rich", "ray", "PIL", "pandas", "scipy")
    sha256, count, boxes = run_python(code, [*blocked, *more]).split()
    assert (sha256, int(count)) == (synthetic.sha256, len(synthetic))
    assert synthetic.soft_labels is not None
    assert float(boxes) == float(synthetic.soft_labels.views(1, 8).boxes.sum())


def test_a_set_without_a_whitening_is_what_it_was_before_there_were_any(tmp_path: Path):
    tiny_set().save(tmp_path / "set")
    card = json.loads((tmp_path / "set" / "card.json").read_text())
    assert card["spec"].keys() == {
        *("name", "class_names", "channels", "size", "mean", "std", "flip")
    }
    assert card["sha256"][:16] == "b90f4e4da7372cdb"  # of format 1, taken at commit 76aee36
    assert "whitened" not in (tmp_path / "set" / "README.md").read_text()


def test_a_whitened_set_holds_its_whitening_and_says_so(tmp_path: Path):
    before = tiny_set(spec=WHITENED)
    before.save(tmp_path / "set")
    after = SyntheticSet.load(tmp_path / "set")
    assert after.spec.zca == WHITENED.zca
    assert torch.equal(after.spec.normalise(after.images), WHITENED.normalise(before.images))
    card = json.loads((tmp_path / "set" / "card.json").read_text())
    assert card["spec"]["zca"] is True
    counted = card["files"]["images.safetensors"]["bytes"]
    assert counted == (tmp_path / "set" / "images.safetensors").stat().st_size
    assert counted > 4 * 64 * 64
    assert "whitened" in (tmp_path / "set" / "README.md").read_text()
    assert torch.equal(after.images, before.images)
    assert after.images.dtype == torch.uint8  # pixels: anyone can look at them


def relabelled(synthetic: SyntheticSet, **changes: Any) -> SyntheticSet:
    assert synthetic.soft_labels is not None
    return replace(synthetic, soft_labels=replace(synthetic.soft_labels, **changes))


def test_the_hash_sees_everything_that_a_student_sees():
    synthetic = tiny_set(views=2)
    assert synthetic.soft_labels is not None
    options, logits = synthetic.soft_labels.options, synthetic.soft_labels.logits
    other_whitening = replace(WHITENED, zca=whitening.fit(tiny_images().images, eps=0.2))
    others = {
        "a pixel": replace(synthetic, images=change()(synthetic.images)),
        "a label": replace(synthetic, hard_labels=change()(synthetic.hard_labels)),
        "a client": replace(synthetic, clients=change()(synthetic.clients)),
        "a logit": relabelled(synthetic, logits=change(5)(logits)),
        "the seed": relabelled(synthetic, seed=6),
        "the views": relabelled(synthetic, options=replace(options, shift=2)),
        "the mean": replace(synthetic, spec=replace(synthetic.spec, mean=(0.41,))),
        "a class name": replace(synthetic, spec=replace(synthetic.spec, class_names=tuple("abd"))),
        "a whitening": replace(synthetic, spec=WHITENED),
        "another whitening": replace(synthetic, spec=other_whitening),
        "no soft labels": replace(synthetic, soft_labels=None),
        "a type": replace(synthetic, hard_labels=synthetic.hard_labels.int()),
    }
    hashes = {name: other.sha256 for name, other in others.items()}
    assert synthetic.sha256 not in hashes.values()
    assert len(set(hashes.values())) == len(hashes)


def test_the_hash_does_not_see_the_card_or_the_layout_in_memory():
    synthetic = tiny_set(views=2, spec=COLOUR)
    assert synthetic.with_card(score=90.0).sha256 == synthetic.sha256
    layout = synthetic.images.contiguous(memory_format=torch.channels_last)
    assert replace(synthetic, images=layout).sha256 == synthetic.sha256


def test_views_replay_from_the_seed_and_differ_from_each_other():
    labels = tiny_set(views=4).soft_labels
    assert labels is not None
    again = SoftLabels(labels.logits, labels.seed, labels.options)
    images = torch.rand(6, 1, 8, 8, generator=generator(0))
    shown = [
        crops.render(images, which.views(view, 8), torch.arange(6))
        for which in (labels, again)
        for view in range(4)
    ]
    for view in range(4):
        assert torch.equal(shown[view], shown[4 + view])
    for view in range(1, 4):
        assert not torch.equal(shown[0], shown[view])


@pytest.mark.parametrize("spec", [tiny_spec(), COLOUR], ids=["grey", "colour"])
def test_normalising_loses_none_of_the_256_levels(spec: DataSpec):
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = levels.expand(2, spec.channels, 16, 16).contiguous()
    assert torch.equal(spec.to_uint8(spec.normalise(images)), images)


def test_normalised_images_have_mean_0_and_deviation_1_per_channel():
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=generator(0)).to(torch.uint8)
    scaled = images.double() / 255
    mean, std = (tuple(f(scaled, (0, 2, 3)).tolist()) for f in (torch.mean, torch.std))
    normal = replace(COLOUR, mean=mean, std=std).normalise(images)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)


def test_values_outside_the_range_are_clipped_at_black_and_white():
    low, high = COLOUR.pixel_bounds()
    shape = (1, 3, 2, 2)
    assert COLOUR.to_uint8((low - 1).expand(shape)).max() == 0
    assert COLOUR.to_uint8((high + 1).expand(shape)).min() == 255
    assert torch.equal(COLOUR.to_uint8(high.expand(shape)), torch.full(shape, 255).byte())


def test_images_know_their_classes():
    data = tiny_images(per_class=4)
    assert data.histogram(5) == [4, 4, 4, 0, 0]
    some = data.select(torch.tensor([1, 4]))
    assert isinstance(some, ImageSet)
    assert some.labels.tolist() == [1, 1]
    assert torch.equal(some.images[1], data.images[4])
