"""The spec of data that devices alone have is, bit for bit, that of their images in one place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import write_class_folders

from fedistill import data
from fedistill.config import DataConfig
from fedistill.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDISTILL_CACHE", str(tmp_path / "cache"))


def test_the_spec_from_devices_is_that_of_their_union(tmp_path: Path):
    loaded = data.load(DataConfig(name="digits"))
    names = loaded.spec.class_names
    write_class_folders(tmp_path / "all" / "train", loaded.train, names)
    write_class_folders(tmp_path / "all" / "test", loaded.test, names)
    write_class_folders(tmp_path / "test alone" / "test", loaded.test, names)
    central = data.load(DataConfig(name=str(tmp_path / "all"), flip=False)).spec
    parts = [loaded.train.select(index) for index in torch.arange(1437).tensor_split(5)]
    pixels = [data.pixel_levels(part.images) for part in parts]
    alone = DataConfig(name=str(tmp_path / "test alone"), flip=False)
    test = data.splits(alone, needed=("test",))
    assert len(test.train) == 0
    assert len(test.test) == 360
    assert replace(data.spec_from(alone, test, pixels), name="all") == central
    config = DataConfig(name="devices", classes=names, size=8, channels=1)
    assert replace(data.spec_from(config, None, pixels), name="all") == central
    unknown = data.spec_from(config, None)
    assert (unknown.mean, unknown.std) == ((0.0,), (1.0,))


def test_the_spec_of_coloured_images_is_channel_by_channel():
    stream = np.random.default_rng(0)
    images = torch.from_numpy(stream.integers(0, 256, (50, 3, 6, 6), dtype=np.uint8))
    images[:, 1] //= 3
    config = DataConfig(name="devices", classes=("a", "b"), size=6, channels=3)
    levels = [data.pixel_levels(part) for part in images.split(7)]
    found = data.spec_from(config, None, levels)
    scaled = images.double() / 255
    assert found.mean == tuple(round(float(it), 4) for it in scaled.mean((0, 2, 3)))
    stds = scaled.permute(1, 0, 2, 3).flatten(1).std(1, correction=0)
    assert found.std == tuple(round(float(it), 4) for it in stds)
    assert found.flip


def test_a_split_alone_is_loaded_where_it_is_enough(tmp_path: Path):
    loaded = data.load(DataConfig(name="digits", fraction=0.02))
    names = loaded.spec.class_names
    write_class_folders(tmp_path / "flat", loaded.train, names)
    flat = DataConfig(name=str(tmp_path / "flat"))
    found = data.splits(flat, needed=("train",))
    assert found.class_names == names
    assert found.train.histogram(10) == loaded.train.histogram(10)
    assert len(found.test) == 0
    for _ in range(2):  # read, and read from the cache
        with pytest.raises(DataError, match="no train split"):
            data.load(flat)
        with pytest.raises(DataError, match=r"no train split|no test split"):
            data.splits(flat, needed=("test",))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="has no class folders"):
        data.splits(DataConfig(name=str(tmp_path / "empty")), needed=("train",))


def test_there_is_nothing_to_load_where_devices_alone_have_images():
    config = DataConfig(name="devices", classes=("a", "b"), size=6, channels=3)
    with pytest.raises(DataError, match=r"data.name is devices, so that there are no images here"):
        data.load(config)
