"""Coresets, two architectures and DD-Ranking's scores in one run, with Flower and without."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config

from fedistill import pipeline, runner, tables
from fedistill.config import Config

CORESETS = ["random", "herding", "k_center"]
PLAIN = {"distilled_plain", "random_plain"}


@pytest.fixture(scope="module")
def config() -> Config:
    return tiny_config(
        baselines=CORESETS,
        student={"models": ["convnet", "shufflenet_v2_x0_5"], "ranking": True, "seeds": 2},
    )


@pytest.fixture(scope="module")
def folder(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "run"
    runner.run(config, folder, "local")
    return folder


@pytest.fixture(scope="module")
def entry(folder: Path) -> dict[str, Any]:
    """What result.json says of the set."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())["sets"]["1"]
    return found


def without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "bytes"}


def test_every_architecture_and_every_coreset_has_a_row(entry: dict[str, Any]):
    assert list(entry["students"]) == ["convnet", "shufflenet_v2_x0_5"]
    assert list(entry["baselines"]) == CORESETS
    assert all(row["n"] == 2 for row in entry["baselines"].values())


def test_the_ranking_stands_beside_them(entry: dict[str, Any]):
    ranking = entry["ranking"]
    rows = ranking["rows"]
    assert rows.keys() == {"full_data", "hard_label", "distilled", "random"} | PLAIN
    assert rows["distilled"] == entry["students"]["convnet"]
    assert rows["random"] == without_bytes(entry["baselines"]["random"])
    ior = rows["distilled"]["top1_mean"] - rows["random"]["top1_mean"]
    assert ranking["ior"] == pytest.approx(ior, abs=2e-3)
    assert 0 <= ranking["lrs"] <= 1
    assert 0 <= ranking["ars"] <= 1


def test_the_page_without_flower_has_the_same_scores(config: Config, entry: dict[str, Any]):
    found = pipeline.run(config)[1].scores.as_dict()
    for row in found["baselines"].values():
        assert "bytes" not in row  # there are no messages
    rows = {name: without_bytes(row) for name, row in entry["baselines"].items()}
    expected = {"students": entry["students"], "baselines": rows, "ranking": entry["ranking"]}
    assert found == expected


def test_the_scores_are_tracked(folder: Path, entry: dict[str, Any]):
    journal = (folder / "tracking.jsonl").read_text()
    for name in ("lrs", "ars", "hlr", "ior", "random_plain/top1_mean"):
        assert f"ranking/{name}" in journal
    assert str(entry["ranking"]["lrs"]) in journal


def test_the_scores_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]):
    tables.print_result(json.loads((folder / "result.json").read_text()), folder)
    printed = capsys.readouterr().out
    assert "label-robust" in printed
    assert "k-center" in printed
