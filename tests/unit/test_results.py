"""The output folder: it is claimed once, and files appear whole."""

import json
import os
import threading
from pathlib import Path

import pytest

from fedistill import results
from fedistill.errors import ClientsFailed, ConfigError, OutputError


def test_a_free_folder_is_claimed_by_writing_the_config(tmp_path: Path):
    folder = tmp_path / "runs" / "one"
    results.check_free(folder)
    results.claim(folder, "seed: 1\n")
    assert (folder / "config.yaml").read_text() == "seed: 1\n"


def test_an_empty_folder_is_free(tmp_path: Path):
    results.claim(tmp_path, "seed: 1\n")


def test_the_folder_of_another_run_is_left_alone(tmp_path: Path):
    results.claim(tmp_path, "seed: 1\n")
    with pytest.raises(OutputError, match="already holds another run"):
        results.claim(tmp_path, "seed: 2\n")
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_folder_with_other_files_is_refused_and_they_are_named(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("work of years")
    with pytest.raises(OutputError, match=r"other files \(thesis\.tex\)"):
        results.check_free(tmp_path)
    with pytest.raises(OutputError):
        results.claim(tmp_path, "")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(OutputError, match="is a file"):
        results.claim(path, "")
    with pytest.raises(OutputError, match="cannot be written"):
        results.claim(path / "below", "")


def test_of_many_claims_at_once_one_wins(tmp_path: Path):
    start, won = threading.Barrier(8), []

    def claim(number: int) -> None:
        start.wait()
        try:
            results.claim(tmp_path / "run", f"seed: {number}\n")
        except OutputError:
            return
        won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "run" / "config.yaml").read_text() == f"seed: {won[0]}\n"


def test_a_json_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "result.json"
    results.write_json(path, {"a": [1, 2]})
    assert json.loads(path.read_text()) == {"a": [1, 2]}

    def full_disk(file: int) -> None:
        os.ftruncate(file, 3)
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="no space"):
        results.write_json(path, {"b": 3})
    assert json.loads(path.read_text()) == {"a": [1, 2]}


def test_nothing_is_left_beside_a_written_file(tmp_path: Path):
    results.write_json(tmp_path / "result.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("error", "of_the_user"),
    [(ConfigError("seed: no"), True), (ClientsFailed("all"), False), (KeyError("x"), False)],
)
def test_a_failure_is_handed_to_the_command(tmp_path: Path, error: Exception, of_the_user: bool):
    assert results.read_failure(tmp_path) is None
    results.write_failure(tmp_path, error)
    assert results.read_failure(tmp_path) == {
        "error": type(error).__name__,
        "user_error": of_the_user,
        "message": str(error),
    }


def test_hardware_and_versions_are_told():
    assert results.versions().keys() >= {"fedistill", "python", "torch", "flwr", "numpy"}
    hardware = results.hardware()
    assert hardware["cores"] >= 1
    assert hardware["cpu"]
    json.dumps([hardware, results.versions()])
