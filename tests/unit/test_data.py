"""A data set is found and read as it is, or one message says what is wrong with it."""

import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedistill import data, whitening
from fedistill.config import DataConfig
from fedistill.errors import DataError

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(value: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (value, value // 2, 0)).convert(mode)


def class_folders(root: Path, mode: str = "RGB", classes: str = "ab", count: int = 4) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(40 * number + i, mode).save(folder / f"{i}.png")
    return root


def encoded(value: int) -> dict[str, object]:
    file = BytesIO()
    picture(value).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def tables(
    root: Path, labels: dict[str, list[object]], kind: object, column: str = "label"
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, found in labels.items():
        rows = {"img": [encoded(10 * i) for i in range(len(found))], column: found}
        features = datasets.Features({"img": datasets.Image(), column: kind})
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def load(folder: Path | str, seed: int = 0, **options: object) -> data.Data:
    return data.load(DataConfig(name=str(folder), **options), seed)


def message_of(folder: Path | str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, **options)
    return str(caught.value)


# What is found


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


# What is kept of it


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


# The cache


def test_a_whitening_is_fitted_to_the_training_images_that_are_kept():
    found = load("digits", zca=True, fraction=0.5, validation=0.2)
    plain = load("digits", fraction=0.5, validation=0.2)
    assert found.spec.zca == whitening.fit(plain.train.images)
    assert plain.spec.zca is None
    assert found.fingerprint == plain.fingerprint
    assert torch.equal(found.test.images, plain.test.images)
    assert found.spec.zca != load("digits", zca=True).spec.zca


def test_a_whitening_is_fitted_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    fit = whitening.fit
    monkeypatch.setattr(whitening, "fit", lambda images: calls.append(len(images)) or fit(images))
    load("digits")
    assert calls == []
    first, second = load("digits", zca=True), load("digits", zca=True)
    assert calls == [1437]
    assert first.spec == second.spec
    load("digits", zca=True, fraction=0.5)
    assert len(calls) == 2
    for path in cache.glob("whitening-*"):
        path.write_bytes(path.read_bytes()[:-1])
    assert load("digits", zca=True).spec == first.spec
    assert len(calls) == 3


def test_images_that_are_too_large_to_be_whitened_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(whitening, "LARGEST", 64)
    assert load("digits", zca=True).spec.zca is not None
    found = message_of("digits", zca=True, size=9)
    assert "an image holds 81 numbers" in found
    assert "accepted: up to 64 numbers; set data.size, or data.zca to false" in found


def test_images_are_decoded_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = class_folders(tmp_path / "toy")
    first = load(folder)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(data, "_decode", None)
    assert load(folder).fingerprint == first.fingerprint
    assert load(folder).spec == first.spec


def test_changed_files_and_another_size_are_decoded_again(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    first = load(folder)
    assert load(folder, size=4).spec.size == 4
    picture(255).save(folder / "train" / "a" / "0.png")
    assert load(folder).fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_cache_is_rebuilt(
    tmp_path: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    folder = class_folders(tmp_path / "toy")
    first = load(folder)
    path = next(cache.iterdir())
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"cut": whole[:-9], "flipped": flipped, "emptied": b""}[damage])
    assert load(folder).fingerprint == first.fingerprint
    assert "damaged" in caplog.text
    caplog.clear()
    assert load(folder).fingerprint == first.fingerprint
    assert not caplog.text


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    cache.write_text("a file is in the way")
    assert len(load(class_folders(tmp_path / "toy")).train) == 8
    assert "set FEDISTILL_CACHE" in caplog.text


def test_processes_that_decode_at_the_same_time_agree(tmp_path: Path, cache: Path):
    folder = class_folders(tmp_path / "toy", count=50)
    config = DataConfig(name=str(folder))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(data.load, config) for _ in range(2)]
        found = {job.result().fingerprint for job in jobs}
    assert found == {load(folder).fingerprint}
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


# What is wrong with it


def test_a_missing_folder(tmp_path: Path):
    assert "no such folder" in message_of(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(tmp_path: Path):
    (tmp_path / "train.parquet").write_text("")
    assert "give the folder" in message_of(tmp_path / "train.parquet")


def test_an_empty_folder(tmp_path: Path):
    assert "found: no folder" in message_of(tmp_path)


def test_no_test_split(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    (folder / "test").rename(folder / "extra")
    assert "no test split, only extra, train" in message_of(folder)


def test_an_empty_test_split(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    for file in folder.glob("test/*/*.png"):
        file.unlink()
    assert "test split is empty" in message_of(folder)


def test_a_damaged_image_is_named(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    path = folder / "train" / "b" / "2.png"
    path.write_bytes(path.read_bytes()[:50])
    assert f"{path} is not an image" in message_of(folder)


def test_an_image_of_16_bits_is_named(tmp_path: Path):
    folder = class_folders(tmp_path / "toy", "L")
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(folder / "train" / "a" / "0.png")
    assert "accepted: 8 bits a channel" in message_of(folder)


def test_a_class_that_nobody_holds_is_named(tmp_path: Path):
    kind = datasets.ClassLabel(names=["cat", "dog", "yak"])
    folder = tables(tmp_path / "toy", {"train": [0, 1, 1], "test": [0]}, kind)
    assert "no training image of class yak" in message_of(folder)


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    kind = datasets.ClassLabel(names=["x"])
    folder = tables(tmp_path / "toy", {"train": [0], "test": [0]}, kind)
    path = folder / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path} is not a whole parquet file" in message_of(folder)


def test_a_damaged_page_of_a_parquet_file_is_one_message(tmp_path: Path):
    kind = datasets.ClassLabel(names=["x"])
    folder = tables(tmp_path / "toy", {"train": [0] * 50, "test": [0]}, kind)
    path = folder / "train-00000-of-00001.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:400] = bytes(396)
    path.write_bytes(whole)
    assert "split train" in message_of(folder)


def test_a_gap_in_the_images_is_named(tmp_path: Path):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": [encoded(0), None], "label": [0, 0]}
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / f"{split}-0.parquet")
    assert "split train, row 1 is not an image" in message_of(tmp_path)


@pytest.mark.parametrize("labels", [[0, -1], [0, None]])
def test_labels_out_of_range_are_named(tmp_path: Path, labels: list[object]):
    folder = tables(tmp_path / "toy", {"train": labels, "test": [0]}, datasets.Value("int64"))
    assert f"labels that are no class: {labels[1]}" in message_of(folder)


def test_no_image_column(tmp_path: Path):
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
        table.to_parquet(tmp_path / f"{split}-0.parquet")
    assert "has no image column; found: text (Value)" in message_of(tmp_path)


def test_no_label_column(tmp_path: Path):
    kind = datasets.Value("float32")
    folder = tables(tmp_path / "toy", {"train": [0.5], "test": [0.5]}, kind, "score")
    assert "has no label column; found: img (Image), score (Value)" in message_of(folder)


@pytest.mark.parametrize("name", ["mnist", "nobody/nothing"])
def test_a_hub_that_cannot_be_reached_is_one_quick_message(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    found = message_of(name)
    assert "cannot be read from the Hugging Face hub" in found
    assert "data.name=digits" in found
    assert time.perf_counter() - start < 5


# The real files


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
