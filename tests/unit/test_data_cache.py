"""The cache: images are decoded once and a whitening is fitted once, whatever befalls the files."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from toy_data import class_folders, load, message_of, picture

from fedistill import data, whitening
from fedistill.config import DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
