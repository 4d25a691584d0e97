"""Bad input ends with exit code 2, one message, no traceback, and nothing overwritten."""

import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import tiny_set
from PIL import Image

from fedistill import cli

QUICK = """
name: bad
data: {name: digits}
partition: {clients: 2}
model: {name: convnet, width: 4}
teacher: {epochs: 1}
distill: {ipc: [1], iterations: 2}
relabel: {views: 2}
student: {epochs: 2, seeds: 1}
tracking: {enabled: false}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(QUICK)
    return path


def fedistill(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedistill", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teacher.epoch=3", "did you mean 'epochs'"),
        ("data.name=mnits-nowhere", "mnits-nowhere"),
        ("distill.name=sre3l", "did you mean 'sre2l'"),
        ("distill.iteration=3", "did you mean 'iterations'"),
        ("distill.ipc=[0]", "distill"),
        ("model.name=resnet19", "resnet19"),
        ("student.models=[convnetz]", "convnetz"),
        ("partition.clients=5000", "5000"),
        ("model.norm=instance", "norm: batch"),
        ("relabel.name=mixed", "relabel.name"),
        ("relabel.tiles=3", "relabel.tiles is 3"),
        ("distill={name: random, ipc: [500]}", "accepted: up to "),
        ("distill={name: random, regularizers: [{name: total_variation, weight: 1}]}", "random"),
        ("teacher.backbones=[{name: convnet, widht: 3}]", "did you mean 'width'"),
        ("cotrain=mob", "among the kinds of cotrain; known: mib"),
        ("cotrain={reference: public}", "public is None"),
        ("cotrain={depth: 9}", "cotrain.depth"),
        ("cotrain={reference: public, public: digits}", "which is the data of the clients"),
        ("cotrain={reference: public, public: /nowhere}", "cotrain.public, read as"),
        ("cotrain={}", "there are no others"),
        ("distill={name: mibdc, ipc: [2, 1]}", "accepted: [1, 2]"),
        ("distill={name: mibdc, samples: 0, iterations: 0}", "samples is 0"),
        ("distill={name: dream, tiles: 3}", "distill.tiles is 3"),
        ("nonsense", "section.key=value"),
    ],
)
def test_a_bad_value_is_named(
    override: str,
    says: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if override.startswith("model.norm"):  # `width` belongs to convnet alone
        override = "model={name: convnet, width: 4, norm: instance}"
    if "resnet19" in override:
        override = "model={name: resnet19}"
    output = tmp_path / "out"
    code = fedistill(
        monkeypatch, "run", config, "--set", override, "--output", output, "--backend", "local"
    )
    message = capsys.readouterr().err
    assert code == 2, message
    assert says in message
    assert "Traceback" not in message
    assert not output.exists()


def test_a_missing_config_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedistill(monkeypatch, "run", tmp_path / "none.yaml") == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["local", "flower"])
@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_store_that_is_a_file_is_refused(
    way: str,
    backend: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = tmp_path / "store", tmp_path / "out"
    path.write_text("mine")
    arguments = ["run", config, "--output", output, "--backend", backend]
    if way == "option":
        arguments += ["--store", path]
    else:
        monkeypatch.setenv("FEDISTILL_STORE", str(path))
    assert fedistill(monkeypatch, *arguments) == 2
    message = capsys.readouterr().err
    assert f"the store {path} is a file; choose another --store" in message
    assert "Traceback" not in message
    assert path.read_text() == "mine"
    assert not output.exists()


def test_an_output_folder_that_holds_a_run_is_left_alone(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.yaml").write_text("mine")
    for backend in ("local", "flower"):
        code = fedistill(monkeypatch, "run", config, "--output", output, "--backend", backend)
        assert code == 2
        assert "already holds another run" in capsys.readouterr().err
    assert (output / "config.yaml").read_text() == "mine"
    assert [path.name for path in output.iterdir()] == ["config.yaml"]


def images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((8, 8), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.parametrize("kind", ["empty folder", "corrupt parquet", "class without images"])
def test_a_bad_folder_is_explained(
    kind: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "corrupt parquet":
        (folder / "train-00000.parquet").write_bytes(b"PAR1 this is not parquet")
        (folder / "test-00000.parquet").write_bytes(b"PAR1 this is not parquet")
    if kind == "class without images":
        for split in ("train", "test"):
            images(folder / split / "cat", 4)
            (folder / split / "dog").mkdir()
    output = tmp_path / "out"
    code = fedistill(
        monkeypatch,
        "run",
        config,
        "--set",
        f"data.name={folder}",
        "--output",
        output,
        "--backend",
        "local",
    )
    message = capsys.readouterr().err
    assert code == 2, message
    assert str(folder) in message or "dog" in message
    assert "Traceback" not in message
    assert not output.exists()


def test_a_damaged_set_is_refused_by_every_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "set"
    tiny_set(views=2).save(folder)
    with (folder / "images.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    for command in (["show"], ["verify"], ["train", "--data", "digits"]):
        assert fedistill(monkeypatch, command[0], folder, *command[1:]) == 2
        assert "SHA-256" in capsys.readouterr().err


def test_a_set_of_other_classes_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "set"
    tiny_set(views=2).save(folder)
    assert fedistill(monkeypatch, "train", folder, "--data", "digits") == 2
    assert "was made from the classes" in capsys.readouterr().err
