"""A data set is found, and read as it is."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from toy_data import class_folders, encoded, load, message_of, tables

from fedistill import data

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def test_digits_need_no_files():
    found = load("digits")
    assert (found.spec.name, found.spec.channels, found.spec.size) == ("digits", 1, 8)
    assert found.spec.class_names == tuple("0123456789")
    assert not found.spec.flip
    assert (len(found.train), len(found.test)) == (1437, 360)
    assert int(found.train.images.max()) == 255
    pixels = found.train.images.double() / 255
    assert found.spec.mean == (round(float(pixels.mean()), 4),)
    assert found.spec.std == (round(float(pixels.std(correction=0)), 4),)
    assert load("digits", seed=5).fingerprint == found.fingerprint
    assert load("digits", size=16).train.images.shape == (1437, 1, 16, 16)


def test_class_folders_are_read_in_the_order_of_their_names(tmp_path: Path):
    found = load(class_folders(tmp_path / "toy", classes="ba"))
    assert found.spec.name == "toy"
    assert found.spec.class_names == ("a", "b")
    assert found.spec.flip
    assert found.train.histogram(2) == [4, 4]
    # The folder b was made first, from 0 up.
    assert found.train.images[found.train.labels == 1][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_test_classes_are_matched_by_name(tmp_path: Path):
    folder = class_folders(tmp_path / "toy", classes="abc")
    for path in (folder / "test" / "a", folder / "test" / "b"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert load(folder).test.labels.unique().tolist() == [2]
    (folder / "test" / "c").rename(folder / "test" / "z")
    assert "'z'" in message_of(folder)


@pytest.mark.parametrize("split", ["validation", "valid", "val"])
def test_another_split_stands_in_for_test(tmp_path: Path, split: str):
    folder = class_folders(tmp_path / "toy")
    (folder / "test").rename(folder / split)
    assert len(load(folder).test) == 8


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("LA", 3)]
)
def test_the_mode_decides_the_channels(tmp_path: Path, mode: str, channels: int):
    found = load(class_folders(tmp_path / "toy", mode))
    assert found.train.images.shape == (8, channels, 8, 8)
    assert found.spec.flip == (channels == 3)


def test_grey_images_among_coloured_ones_become_coloured(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    grey = class_folders(tmp_path / "grey", "L")
    (folder / "train" / "a").rename(tmp_path / "aside")
    (grey / "train" / "a").rename(folder / "train" / "a")
    found = load(folder)
    assert found.train.images.shape[1] == found.test.images.shape[1] == 3
    first = found.train.images[found.train.labels == 0][:, :, 0, 0]
    assert first.eq(first[:, :1]).all()


def test_the_same_images_are_the_same_data_in_every_layout(tmp_path: Path):
    kind = datasets.ClassLabel(names=["x", "y"])
    numbers = load(tables(tmp_path / "one", {"train": [0, 1, 1], "test": [1]}, kind))
    nested = load(tables(tmp_path / "two" / "data", {"train": [0, 1, 1], "test": [1]}, kind).parent)
    texts = load(
        tables(
            tmp_path / "three",
            {"train": ["x", "y", "y"], "test": ["y"]},
            datasets.Value("string"),
            "target",
        )
    )
    assert numbers.fingerprint == nested.fingerprint == texts.fingerprint
    assert numbers.train.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert numbers.train.labels.tolist() == [0, 1, 1]


def test_numbers_without_names_are_named_by_their_digits(tmp_path: Path):
    found = load(tables(tmp_path / "toy", {"train": [1, 0], "test": [1]}, datasets.Value("int64")))
    assert found.spec.class_names == ("0", "1")


def test_the_fine_label_is_preferred(tmp_path: Path):
    kinds = {
        "img": datasets.Image(),
        "coarse_label": datasets.ClassLabel(names=["one"]),
        "fine_label": datasets.ClassLabel(names=["x", "y"]),
    }
    rows = {"img": [encoded(0), encoded(1)], "coarse_label": [0, 0], "fine_label": [1, 0]}
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        table.to_parquet(tmp_path / f"{split}-0.parquet")
    assert load(tmp_path).spec.class_names == ("x", "y")


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(folder / "train" / "a" / "0.png")
    assert "24 x 8" in message_of(folder)
    assert "set data.size" in message_of(folder)
    found = load(folder, size=4)
    assert found.spec.size == 4
    centre = found.train.images[0]
    assert centre.shape == (3, 4, 4)
    assert int(centre[:, :, 1:3].min()) == 200


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = np.zeros((8, 8, 3), np.uint8)
    turned[0] = 255
    Image.fromarray(turned).save(folder / "train" / "a" / "0.png", exif=exif)
    assert load(folder).train.images[0, 0, :, 0].tolist() == [0] * 7 + [255]


def test_a_constant_channel_has_a_standard_deviation(tmp_path: Path):
    spec = load(class_folders(tmp_path / "toy")).spec
    assert (spec.mean[2], spec.std[2]) == (0.0, 1e-3)


@pytest.mark.parametrize(
    ("name", "flip"), [("svhn_small", False), ("my-mnist", False), ("x", True)]
)
def test_a_mirrored_digit_is_another_digit(tmp_path: Path, name: str, flip: bool):
    folder = class_folders(tmp_path / name)
    assert load(folder).spec.flip is flip
    assert load(folder, flip=not flip).spec.flip is not flip


def test_fraction_keeps_that_share_of_every_class():
    whole, part = load("digits"), load("digits", fraction=0.1)
    for had, kept in zip(whole.train.histogram(10), part.train.histogram(10), strict=True):
        assert kept == round(had / 10)
    assert part.test.images.equal(whole.test.images)
    assert part.spec == whole.spec
    assert load("digits", fraction=1e-6).train.histogram(10) == [1] * 10
    assert load("digits", fraction=0.1).fingerprint == part.fingerprint
    assert load("digits", seed=1, fraction=0.1).fingerprint != part.fingerprint


def test_validation_is_held_out_of_training_and_replaces_the_test_split():
    whole, part = load("digits"), load("digits", validation=0.25)
    assert len(part.train) + len(part.test) == len(whole.train)
    for had, held in zip(whole.train.histogram(10), part.test.histogram(10), strict=True):
        assert held == round(had / 4)
    together = torch.cat([part.train.images, part.test.images])
    rows = [sorted(images.flatten(1).tolist()) for images in (together, whole.train.images)]
    assert rows[0] == rows[1]


def test_fraction_does_not_change_what_is_held_out():
    part, both = load("digits", validation=0.25), load("digits", validation=0.25, fraction=0.5)
    assert both.test.images.equal(part.test.images)
    assert len(both.train) == pytest.approx(len(part.train) / 2, abs=10)


def test_a_validation_share_of_no_image_is_refused():
    assert "raise it" in message_of("digits", validation=1e-6)


@pytest.mark.real
@pytest.mark.parametrize(("name", "channels", "size"), [("mnist", 1, 28), ("cifar10", 3, 32)])
def test_the_real_files_have_the_published_statistics(name: str, channels: int, size: int):
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} does not exist")
    found = load(REAL / name)
    assert found.train.images.shape == ({1: 60000, 3: 50000}[channels], channels, size, size)
    assert len(found.test) == 10000
    assert found.spec.num_classes == 10
    assert found.spec.flip == (name == "cifar10")
    mean, std = data._STATISTICS[name]
    assert found.spec.mean == pytest.approx(mean, abs=1e-4)
    assert found.spec.std == pytest.approx(std, abs=1e-4)
