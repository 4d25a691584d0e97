"""`fedistill train` uses a set's own whitening, and refuses a set that has lost it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import tiny_images
from torch import Tensor

from fedistill import cli, data, whitening
from fedistill.config import DataConfig
from fedistill.images import DataSpec
from fedistill.sets import SyntheticSet


def digits_set(folder: Path, zca: bool) -> DataSpec:
    loaded = data.load(DataConfig(name="digits"))
    spec = loaded.spec
    if zca:  # not the whitening of the data set: the one that the set was made with
        other = tiny_images(spec=replace(spec, class_names=("a", "b", "c"))).images
        spec = replace(spec, zca=whitening.fit(other))
    first = torch.stack([(loaded.train.labels == label).nonzero()[0, 0] for label in range(10)])
    SyntheticSet(
        spec=spec,
        images=loaded.train.images[first],
        hard_labels=torch.arange(10),
        clients=torch.zeros(10, dtype=torch.int64),
        card={
            "recipe": {
                "data": {"name": "digits", "zca": zca, "size": None},
                "model": {"name": "convnet", "depth": 2, "width": 8},
            }
        },
    ).save(folder)
    return spec


def fedistill(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedistill", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


@pytest.mark.parametrize("zca", [False, True])
def test_students_see_what_the_set_was_made_for(
    zca: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = digits_set(tmp_path / "set", zca)
    monkeypatch.setattr(whitening, "fit", lambda images: pytest.fail("it was fitted again"))
    seen: list[DataSpec] = []
    normalise = DataSpec.normalise

    def watched(self: DataSpec, images: Tensor) -> Tensor:
        seen.append(self)
        return normalise(self, images)

    monkeypatch.setattr(DataSpec, "normalise", watched)
    options = ("--data", "digits", "--model", "convnet", "--seeds", 1, "--epochs", 1)
    assert fedistill(monkeypatch, "train", tmp_path / "set", *options) == 0
    assert len(seen) >= 2  # the set and the test split
    assert all(found == spec for found in seen)
    assert (spec.zca is not None) == zca


@pytest.mark.parametrize("command", [["train", "--data", "digits"], ["show"], ["verify"]])
def test_a_set_that_was_not_fitted_is_refused(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "set"
    digits_set(folder, zca=False)
    card = json.loads((folder / "card.json").read_text())
    card["recipe"]["data"]["zca"] = True
    (folder / "card.json").write_text(json.dumps(card))
    assert fedistill(monkeypatch, command[0], folder, *command[1:]) == 2
    message = capsys.readouterr().err
    assert str(folder) in message
    assert "its recipe says data.zca: true, and no whitening was fitted for it" in message
    assert "accepted: a set with its whitening, or a recipe with data.zca: false" in message
    assert "Traceback" not in message


def test_images_too_large_to_be_whitened_are_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "config.yaml"
    config.write_text("data: {name: digits, size: 96, zca: true}")
    code = fedistill(monkeypatch, "run", config, "--output", tmp_path / "out", "--backend", "local")
    assert code == 2
    assert "an image holds 9216 numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
