"""A data set that cannot be read is one message, which says what is wrong with it and where."""

import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from toy_data import class_folders, encoded, load, message_of, tables

from fedistill.errors import DataError


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


def test_all_damaged_images_are_named_at_once_and_counted_for_others(tmp_path: Path):
    folder = class_folders(tmp_path / "toy")
    for name in ("a/1", "b/0", "b/2"):
        (folder / "train" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        load(folder)
    train = folder / "train"
    assert str(caught.value).startswith(f"{train}/a/1.png is not an image that can be read (")
    assert f"and 2 more are not: {train}/b/0.png, {train}/b/2.png; mend or remove them" in str(
        caught.value
    )
    assert caught.value.told == (
        "it holds images that cannot be read: 1 of class 'a', 2 of class 'b'; mend or remove them"
    )


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
