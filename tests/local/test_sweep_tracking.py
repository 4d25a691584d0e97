"""Where the runs of a sweep are in MLflow, however often it is continued."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedistill import cli, client_app, comparison, grid, runner, sweep, tracking
from fedistill.config import SweepConfig
from fedistill.errors import RunError
from fedistill.journal import JOURNAL, Journal, read_events


def test_a_sweep_is_in_one_store_wherever_it_is_continued(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    """Its view in MLflow would lack what was done before."""
    output = tmp_path / "sweep"

    def swept(clients: int, **options: str) -> set[str]:
        axes = SweepConfig(clients=(clients,), ipc=(1,))
        state = sweep.run(make(axes, tracking={"enabled": True, **options}), output, "local")
        folders = [output, *(output / run["folder"] for run in state["runs"])]
        stored = [tracking.stored_run(folder) for folder in folders]
        return {"nowhere" if it is None else it.tracking_uri for it in stored}

    for place in ("first", "second"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    assert swept(1) == {f"sqlite:///{tmp_path}/first/mlflow.db"}
    monkeypatch.chdir(tmp_path / "second")
    assert swept(2) == {f"sqlite:///{tmp_path}/first/mlflow.db"}
    assert not [*Path.cwd().iterdir()]
    other = f"sqlite:///{tmp_path}/other.db"
    assert swept(3, uri=other) == {other}
    third = f"sqlite:///{tmp_path}/third.db"
    assert swept(3, uri=third) == {third}, "nothing is left to do"
    assert swept(3, uri=other) == {other}
    told = CliRunner().invoke(cli.app, ["track", str(output)])
    assert told.exit_code == 0
    assert "other.db" in told.output
    assert "first" not in told.output
    (tmp_path / "other.db").unlink()
    assert tracking.named_store(output) is None, "it is gone, so the next one is made here"


def test_a_sweep_whose_last_federation_kills_the_server_has_failed(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    plan, output = make(SweepConfig(clients=(1,), ipc=(1,))), tmp_path / "sweep"

    def die(*_: object) -> None:
        Journal(output).start(experiment="e", run_name="r", tags={}, uri=None)
        raise RunError("the ServerApp was killed")

    monkeypatch.setattr(runner, "execute", die)
    with pytest.raises(RunError, match="1 of 1 federations failed"):
        sweep.run(plan, output, "local")
    ends = [it["status"] for it, _ in read_events(output / JOURNAL) if it["event"] == "end"]
    assert ends == ["FAILED"]


def test_a_sweep_with_a_failed_federation_has_failed_until_it_is_done(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    plan, output = make(SweepConfig(clients=(1, 2), ipc=(1,))), tmp_path / "sweep"

    def ends() -> list[str]:
        return [it["status"] for it, _ in read_events(output / JOURNAL) if it["event"] == "end"]

    real = client_app.make_share
    with monkeypatch.context() as patch:

        def fail(config: Any, *args: Any, **options: Any) -> Any:
            if config.partition.clients == 1:
                raise MemoryError("too large")
            return real(config, *args, **options)

        patch.setattr(client_app, "make_share", fail)
        with pytest.raises(RunError):
            sweep.run(plan, output, "local")
    assert ends() == ["FAILED"]
    sweep.run(plan, output, "local")
    assert ends() == ["FAILED", "FINISHED"]
    done = comparison.read(output)
    assert {run["status"] for run in done["runs"]} == {"done"}
    assert sweep.run(plan, output, "local")["seconds"] == done["seconds"], "nothing was left to do"
    assert ends() == ["FAILED", "FINISHED"]
