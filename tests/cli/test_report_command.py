"""`fedistill report`: a page, or one message that says what is wrong."""

import sys
from pathlib import Path

import made_up
import pytest

from fedistill import cli


def fedistill(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedistill", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_the_page_is_beside_the_result_or_where_it_is_wanted(tmp_path, monkeypatch, capsys):
    folder = made_up.run_folder(tmp_path / "r", ipc=(1,))
    assert fedistill(monkeypatch, "report", folder) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    page = (folder / "report.html").read_text()
    elsewhere = tmp_path / "page.html"
    assert fedistill(monkeypatch, "report", folder, "--output", elsewhere) == 0
    assert len(elsewhere.read_text()) == pytest.approx(len(page), rel=0.05)
    assert not [*tmp_path.rglob("*.partial")]


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: None, "there is no folder"),
        (lambda folder: folder.mkdir(), "holds neither a run (result.json) nor a sweep"),
        (
            lambda folder: (made_up.run_folder(folder) / "result.json").unlink(),
            "has not finished",
        ),
    ],
)
def test_a_folder_that_cannot_be_reported_is_a_mistake_of_the_users(
    prepare, says, tmp_path: Path, monkeypatch, capsys
):
    prepare(tmp_path / "r")
    assert fedistill(monkeypatch, "report", tmp_path / "r") == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_an_output_that_cannot_be_written_is_a_mistake_of_the_users(tmp_path, monkeypatch, capsys):
    folder = made_up.run_folder(tmp_path / "r", ipc=(1,))
    (tmp_path / "file").write_text("mine")
    assert fedistill(monkeypatch, "report", folder, "--output", tmp_path / "file" / "x") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
