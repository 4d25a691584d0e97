"""A sweep whose federations, whose simulation or whose MLflow fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedistill import cli, client_app, comparison, grid, runner, sweep
from fedistill.config import SweepConfig
from fedistill.errors import RunError, WorkerDied
from fedistill.journal import JOURNAL, Journal, read_events
from fedistill.tracking import stored_run
from strategies import server_app


def test_a_federation_that_fails_is_noted_and_tried_again(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    plan = make(SweepConfig(clients=(1, 2)))
    real = client_app.make_share

    def fail(config: Any, *args: Any, **options: Any) -> Any:
        if config.partition.clients == 1:
            raise MemoryError("too large")
        return real(config, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client_app, "make_share", fail)
        with pytest.raises(RunError, match=r"1 of 2 federations failed(.|\n)*too large"):
            sweep.run(plan, tmp_path / "sweep", "local")
    states = [run["status"] for run in comparison.read(tmp_path / "sweep")["runs"]]
    assert states == ["failed", "done"]
    state = sweep.run(plan, tmp_path / "sweep", "local")
    assert [run["status"] for run in state["runs"]] == ["done", "done"]


def test_a_federation_that_brings_the_simulation_down_does_so_twice_at_most(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    plan = make(SweepConfig(clients=(1, 2)))
    real, deaths = server_app._tracked, []

    def die(config: Any, *args: Any) -> None:
        if config.partition.clients == 1:
            deaths.append(1)
            raise WorkerDied("the worker process of client 0 died")
        real(config, *args)

    monkeypatch.setattr(server_app, "_tracked", die)
    with pytest.raises(RunError, match="the worker process of client 0 died"):
        sweep.run(plan, tmp_path / "sweep", "local")
    states = [run["status"] for run in comparison.read(tmp_path / "sweep")["runs"]]
    assert states == ["failed", "done"]
    assert len(deaths) == 1


def test_a_federation_that_was_killed_as_it_ended_has_not_failed(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    plan = make(SweepConfig(clients=(1,)))
    state = sweep.run(plan, tmp_path / "sweep", "local")
    journal = tmp_path / "sweep" / state["runs"][0]["folder"] / JOURNAL
    *events, end = journal.read_text().splitlines(keepends=True)
    assert json.loads(end)["status"] == "FINISHED"
    journal.write_text("".join(events))
    sweep.run(plan, tmp_path / "sweep", "local")
    assert [event["status"] for event, _ in read_events(journal) if event["event"] == "end"] == [
        "FINISHED"
    ]


def test_where_flower_does_not_start_no_federation_is_blamed(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    plan = make(SweepConfig(clients=(1, 2)))

    def broken(*_: Any) -> None:
        raise RunError("the SuperLink did not start")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "execute", broken)
        with pytest.raises(RunError, match="did not start; no federation had begun"):
            sweep.run(plan, tmp_path / "sweep", "local")
    states = [run["status"] for run in comparison.read(tmp_path / "sweep")["runs"]]
    assert states == ["todo", "todo"]


def test_a_federation_whose_process_died_has_failed_in_its_journal(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    plan = make(SweepConfig(clients=(1,)))

    def die(config: Any, output: Path, *_: Any) -> None:
        Journal(output).start(experiment="e", run_name="n", tags={}, uri=None)
        raise WorkerDied("out of memory")

    monkeypatch.setattr(server_app, "_tracked", die)
    with pytest.raises(RunError, match="out of memory"):
        sweep.run(plan, tmp_path / "sweep", "local")
    journal = tmp_path / "sweep" / plan.federations[0].folder / "tracking.jsonl"
    *_, last = (event for event, _ in read_events(journal))
    assert (last["event"], last["status"]) == ("end", "FAILED")


def test_what_mlflow_missed_of_a_sweep_is_sent_by_one_command(
    tmp_path: Path, make: Callable[..., grid.Grid], capsys: pytest.CaptureFixture[str]
):
    uri = f"sqlite:///{tmp_path / 'later.db'}"
    plan = make(SweepConfig(clients=(1, 2), ipc=(1,)), tracking={"enabled": False, "uri": uri})
    sweep.run(plan, tmp_path / "sweep", "local")
    assert not (tmp_path / "later.db").exists()
    cli.app(["track", str(tmp_path / "sweep")], standalone_mode=False)
    told = capsys.readouterr().out
    for it in plan.federations:
        assert f"{it.folder} is in MLflow as run" in told
        assert stored_run(tmp_path / "sweep" / it.folder) is not None


@pytest.mark.parametrize("failing", [(1,), (1, 2)], ids=["one", "all"])
def test_what_is_done_of_a_sweep_that_fails_is_shown(
    tmp_path: Path,
    make: Callable[..., grid.Grid],
    monkeypatch: pytest.MonkeyPatch,
    failing: tuple[int, ...],
):
    path = make(SweepConfig(clients=(1, 2), ipc=(1,))).federations[0].path
    real = client_app.make_share

    def fail(config: Any, *args: Any, **options: Any) -> Any:
        if config.partition.clients in failing:
            raise MemoryError("too large")
        return real(config, *args, **options)

    monkeypatch.setattr(client_app, "make_share", fail)
    output = str(tmp_path / "sweep")
    axes = ["--clients", "1,2", "--ipc", "1", "--backend", "local", "--output", output]
    told = CliRunner().invoke(cli.app, ["sweep", str(path), *axes])
    assert isinstance(told.exception, RunError)
    assert f"{2 - len(failing)} of 2 federations are done" in told.output
    assert (tmp_path / "sweep" / "report.html").is_file()


def test_what_a_device_says_of_its_machine_replaces_nothing_of_ours(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_app, "machine", lambda: {"partition_id": "99", "cpu": "abacus"})
    plan = make(SweepConfig(clients=(1,), ipc=(1,)))
    sweep.run(plan, tmp_path / "sweep", "local")
    journal = tmp_path / "sweep" / plan.federations[0].folder / JOURNAL
    params = [it for it, _ in read_events(journal) if "abacus" in str(it)]
    assert params
    assert all("99" not in str(it["params"]) for it in params)
    assert any(it["params"]["partition_id"] == "0" for it in params)
