"""What the command line says and passes on around deployments."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedistill import cli, runner, tables, tracking
from fedistill.errors import UserError

CONFIG = "name: far\ntracking: {enabled: false}\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config whose deployment does nothing."""
    monkeypatch.setattr(runner, "deploy", lambda *_: {})
    monkeypatch.setattr(tables, "print_result", lambda *_: None)
    monkeypatch.setattr(cli, "_write_page", lambda folder: None)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--backend", "local"], "--backend and --superlink are given"),
        (["--backend", "flower"], "--backend and --superlink are given"),
        (["--store", "here"], "set `store` in the node config of each device"),
    ],
)
def test_what_a_deployment_would_drop_is_refused(config: str, option: list[str], words: str):
    done = CliRunner().invoke(cli.app, ["run", config, "--superlink", "clinic", *option])
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_a_store_of_the_environment_is_for_other_runs(config: str, tmp_path: Path):
    arguments = ["run", config, "--superlink", "clinic"]
    done = CliRunner().invoke(cli.app, arguments, env={"FEDISTILL_STORE": str(tmp_path)})
    assert done.exit_code == 0, done.output


def test_a_folder_that_nobody_named_is_told_of(config: str):
    done = CliRunner().invoke(cli.app, ["run", config, "--superlink", "clinic"])
    assert "repeat the command with --output runs/far-" in done.output
    named = ["run", config, "--superlink", "clinic", "--output", "here"]
    assert "--output" not in CliRunner().invoke(cli.app, named).output


def test_a_run_can_be_sent_to_another_store(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def deliver(folder: Path, uri: str | None = None, **_: Any) -> tracking.StoredRun:
        seen.append((folder, uri))
        return tracking.StoredRun(uri or "known", "1", "r")

    monkeypatch.setattr(tracking, "deliver", deliver)
    for options in ([], ["--uri", "http://outside:5000"]):
        assert CliRunner().invoke(cli.app, ["track", "run", *options]).exit_code == 0
    assert seen == [(Path("run"), None), (Path("run"), "http://outside:5000")]
