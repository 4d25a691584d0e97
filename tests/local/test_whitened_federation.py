"""A federation in whitened pixels: fitted on the server, sent to the clients, kept in the set."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import tiny_config

from fedistill import data, device, pipeline, runner, whitening
from fedistill.sets import SyntheticSet

CONFIG = tiny_config(data={"zca": True})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDISTILL_CACHE", str(tmp_path / "cache"))
    device._partitioned.cache_clear()


def test_it_is_fitted_once_and_the_set_is_the_one_of_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    fit = whitening.fit
    monkeypatch.setattr(whitening, "fit", lambda images: calls.append(len(images)) or fit(images))
    monkeypatch.setenv("FEDISTILL_STORE", str(tmp_path / "store"))
    result = runner.run(CONFIG, tmp_path / "run", "local")
    assert calls == [len(data.load(CONFIG.data).train)]

    saved = SyntheticSet.load(tmp_path / "run" / "sets" / "ipc-1")
    assert saved.spec == data.load(CONFIG.data).spec
    assert saved.spec.zca is not None
    assert result["sets"]["1"]["bytes"]["images"] > 4 * 64 * 64
    down = result["bytes"]["per_client"]["0"]["stages"]
    assert down["train.distill"]["down"] > 4 * 64 * 64 > down["query.describe"]["down"]

    monkeypatch.delenv("FEDISTILL_STORE")
    outcome = pipeline.run(CONFIG)[1]
    assert len(calls) == 1
    assert outcome.synthetic.sha256 == saved.sha256 == result["sets"]["1"]["sha256"]
    again = outcome.scores.students["convnet"].as_dict()
    assert again == result["sets"]["1"]["students"]["convnet"]


def test_another_whitening_is_another_artefact_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDISTILL_STORE", str(tmp_path / "store"))
    loaded = data.load(CONFIG.data)
    first = pipeline.run(CONFIG)[1].synthetic
    other = replace(loaded.spec, zca=whitening.fit(loaded.train.images, eps=0.2))
    monkeypatch.setattr(data, "load", lambda *_: replace(loaded, spec=other))
    second = pipeline.run(CONFIG)[1].synthetic
    assert not torch.equal(first.images, second.images)
    assert len(list((tmp_path / "store").glob("teacher-*"))) == 4
