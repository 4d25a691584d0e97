"""A sweep from its grid to its table, in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import tiny_tree

from fedistill import (
    cli,
    client_app,
    comparison,
    config_file,
    grid,
    results,
    runner,
    sweep,
    sweep_folder,
    tables,
)
from fedistill.config import SweepConfig
from fedistill.errors import OutputError, PartitionError, RunError, WorkerDied
from fedistill.journal import Journal, read_events
from fedistill.tracking import stored_run
from strategies import experiment, server_app

AXES = SweepConfig(clients=(1, 2), ipc=(1, 2), seed=(0, 1))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., grid.Grid]:
    def load(axes: SweepConfig = AXES, **sections: Any) -> grid.Grid:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tiny_tree(**sections)))
        return grid.load(path, [], axes)

    return load


def hashes(folder: Path) -> dict[str, str]:
    return {
        f"{row.folder.name}/{row.line.ipc}": row.result["sets"][str(row.line.ipc)]["sha256"]
        for row in comparison.rows(folder)
    }


def numbers(folder: Path) -> list[tuple[Any, ...]]:
    return [(row.line, row.clients, row.seed, row.top1) for row in comparison.rows(folder)]


def test_a_sweep_makes_what_its_federations_make_alone(
    tmp_path: Path, make: Callable[..., grid.Grid], capsys: pytest.CaptureFixture[str]
):
    plan = make()
    state = sweep.run(plan, tmp_path / "sweep", "local")
    assert [run["status"] for run in state["runs"]] == ["done"] * 4
    last = plan.federations[-1]
    alone = runner.run(last.config, tmp_path / "alone", "local")
    found = results.read_json(tmp_path / "sweep" / last.folder / results.RESULT)
    for ipc in ("1", "2"):
        assert found["sets"][ipc]["sha256"] == alone["sets"][ipc]["sha256"]
        assert found["sets"][ipc]["students"] == alone["sets"][ipc]["students"]
    assert found["config_sha256"] == alone["config_sha256"]

    tables.print_sweep(state, tmp_path / "sweep")
    assert "4 of 4 federations are done" in capsys.readouterr().out
    events = [event for event, _ in read_events(tmp_path / "sweep" / "tracking.jsonl")]
    lines = {event["run"] for event in events if event["event"] == "child"}
    assert lines == {"line/sre2l-None-0001", "line/sre2l-None-0002"}
    points = [tuple(p) for e in events if e["event"] == "curve" for p in e["points"]]
    assert len([p for p in points if p[0] == 2]) == 2 * 2 * 2  # sizes, seeds; with the teachers
    for run in state["runs"]:
        journal = tmp_path / "sweep" / run["folder"] / "tracking.jsonl"
        start = next(event for event, _ in read_events(journal))
        assert start["tags"]["sweep_id"] == state["sweep_id"]


def test_a_sweep_that_was_cut_short_ends_with_the_same_numbers(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    plan = make()
    sweep.run(plan, tmp_path / "whole", "local")
    real, calls = experiment.scoring.score_all, []

    def cut(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(experiment.scoring, "score_all", cut)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(plan, tmp_path / "cut", "local")
    states = [run["status"] for run in comparison.read(tmp_path / "cut")["runs"]]
    assert states == ["done", "todo", "todo", "todo"]
    events = [event for event, _ in read_events(tmp_path / "cut" / "tracking.jsonl")]
    assert events[-1]["event"] == "end"

    plans, seconds = sweep.dry_run(plan, tmp_path / "cut", None)
    assert [it.status for it in plans] == states
    assert (plans[1].teachers, plans[1].shares) == (2, 2)  # from the run that was cut
    assert (plans[2].teachers, plans[2].shares) == (0, 0)
    assert seconds[0] == 0
    assert all(value > 0 for value in seconds[1:])

    first = results.read_json(tmp_path / "cut" / plan.federations[0].folder / results.RESULT)
    sweep.run(plan, tmp_path / "cut", "local")
    again = results.read_json(tmp_path / "cut" / plan.federations[0].folder / results.RESULT)
    assert again == first  # not done again
    second = results.read_json(tmp_path / "cut" / plan.federations[1].folder / results.RESULT)
    assert second["from_store"] == {"squeeze": [0, 1], "recover": [0, 1]}
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


@pytest.mark.parametrize(
    ("varied", "trained", "made"),
    [
        ({"student.epochs": (1, 2)}, [True, False], [True, False]),
        ({"distill.iterations": (1, 2)}, [True, False], [True, True]),
        ({"teacher.epochs": (1, 2)}, [True, True], [True, True]),
    ],
)
def test_what_federations_share_is_planned_once(
    tmp_path: Path,
    make: Callable[..., grid.Grid],
    varied: dict[str, tuple[int, ...]],
    trained: list[bool],
    made: list[bool],
):
    plans, _ = sweep.dry_run(make(SweepConfig(clients=(2,), vary=varied)), tmp_path / "new", None)
    clients = [[bool(size) for size in plan.load.shards] for plan in plans]
    assert clients == [[own] * 2 for own in trained]
    clients = [[bool(images) for images in plan.load.images] for plan in plans]
    assert clients == [[own] * 2 for own in made]
    assert not any(plan.teachers or plan.shares for plan in plans)  # none is there yet


def test_options_that_are_varied_are_compared_like_methods(
    tmp_path: Path, make: Callable[..., grid.Grid], capsys: pytest.CaptureFixture[str]
):
    plan = make(SweepConfig(clients=(1,), ipc=(1,), vary={"distill.iterations": (1, 2)}))
    state = sweep.run(plan, tmp_path / "sweep", "local")
    methods = ["sre2l (iterations 1)", "sre2l (iterations 2)"]
    assert state["axes"]["distiller"] == methods
    rows = comparison.rows(tmp_path / "sweep")
    assert [row.line.distiller for row in rows] == methods
    assert len(set(hashes(tmp_path / "sweep").values())) == 2
    # The teacher is the same, so the second federation takes it from the store.
    assert [row.result["from_store"]["squeeze"] for row in rows] == [[], [0]]
    events = [event for event, _ in read_events(tmp_path / "sweep" / "tracking.jsonl")]
    lines = {event["name"] for event in events if event["event"] == "child"}
    assert lines == {f"{method}, IPC 001" for method in methods}
    for row, method in zip(rows, methods, strict=True):
        start = next(event for event, _ in read_events(row.folder / "tracking.jsonl"))
        assert start["tags"]["variant"] == method
        assert start["name"] == f"N=01 {method} mix s0"
    tables.print_sweep(state, tmp_path / "sweep")
    assert "2 of 2 federations are done" in capsys.readouterr().out
    sweep.run(plan, tmp_path / "sweep", "local")  # nothing is left to do
    assert [row.result for row in comparison.rows(tmp_path / "sweep")] == [it.result for it in rows]


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


def test_a_sweep_grows_by_federations_and_refuses_another_config(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    sweep.run(make(SweepConfig(clients=(2,), ipc=(1,))), tmp_path / "sweep", "local")
    state = sweep.run(make(SweepConfig(clients=(1,), ipc=(1,))), tmp_path / "sweep", "local")
    assert state["axes"]["clients"] == [1, 2]
    assert [run["status"] for run in state["runs"]] == ["done", "done"]
    before = hashes(tmp_path / "sweep")
    other = make(SweepConfig(clients=(2,), ipc=(1,)), student={"epochs": 3})
    with pytest.raises(OutputError, match=r"differs in student\.epochs"):
        sweep.run(other, tmp_path / "sweep", "local")
    assert hashes(tmp_path / "sweep") == before


def test_an_experiment_keeps_its_folder_whatever_axes_a_later_command_names(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    """Twice in the table it would look like two seeds."""
    sweep.run(make(SweepConfig(clients=(1,), ipc=(1,))), tmp_path / "sweep", "local")
    before = hashes(tmp_path / "sweep")
    more = make(SweepConfig(clients=(1,), ipc=(1,), alpha=("iid", 0.3), distiller=("sre2l",)))
    state = sweep.run(more, tmp_path / "sweep", "local")
    assert [run["folder"] for run in state["runs"]] == [
        "runs/clients-01_seed-0",
        "runs/clients-01_alpha-0.3_sre2l_seed-0",
    ]
    assert hashes(tmp_path / "sweep").items() > before.items()
    curves = comparison.curves(comparison.rows(tmp_path / "sweep"))
    assert {line.alpha: curve[1].n for line, curve in curves.items()} == {None: 1, 0.3: 1}
    saved = config_file.load(tmp_path / "sweep" / results.CONFIG)
    assert saved.sweep is not None
    assert saved.sweep.alpha == ("iid", 0.3)
    assert len(state["commands"]) == 1  # the same command line, that of the tests


@pytest.mark.parametrize(
    ("axes", "sections", "says"),
    [
        ({}, {"relabel": {"views": 7}}, r"relabel\.views"),
        ({}, {"data": {"name": "digits", "fraction": 0.5}}, r"data\.fraction"),
        ({"alpha": (0.3,)}, {"student": {"epochs": 3}}, r"student\.epochs"),
        ({"distiller": ("random",)}, {"teacher": {"epochs": 7}}, r"teacher\.epochs"),
        ({"distiller": ("random",), "alpha": (0.3,)}, {}, ""),
        ({"ipc": (3,)}, {"federation": {"deadline_s": 77}, "baselines": ["hard_label"]}, ""),
        ({"vary": {"relabel.views": (2,)}}, {}, ""),
    ],
)
def test_only_what_can_be_compared_joins_a_sweep(
    tmp_path: Path, make: Callable[..., grid.Grid], axes: Any, sections: Any, says: str
):
    """One chart would show as one line what differs in more than the number of clients."""
    first = make(SweepConfig(clients=(2,), ipc=(1,)))
    output = tmp_path / "sweep"
    output.mkdir()
    sweep_folder.claim(first, output, [it.as_dict() for it in first.federations], [])
    other = make(SweepConfig(**{"clients": (3,), "ipc": (1,), **axes}), **sections)
    if says:
        with pytest.raises(OutputError, match=says):
            sweep_folder.check(other, output)
    else:
        sweep_folder.check(other, output)


def test_what_a_sweep_left_that_never_began_is_no_obstacle(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    plan = make(SweepConfig(clients=(1,), ipc=(1,)))
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "plan", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(plan, tmp_path / "sweep", "local")
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        ".fedistill.lock",
        "store",
    ]
    assert sweep.run(plan, tmp_path / "sweep", "local")["runs"][0]["status"] == "done"


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


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path, make: Callable[..., grid.Grid]):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        sweep.run(make(), tmp_path / "file" / "sweep", "local")
    with pytest.raises(OutputError, match="is a file"):
        sweep.dry_run(make(), tmp_path / "sweep", tmp_path / "file")


def test_what_the_data_do_not_allow_is_found_before_anything_runs(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    with pytest.raises(PartitionError, match=r"partition\.clients is 500"):
        sweep.run(make(SweepConfig(clients=(2, 500))), tmp_path / "sweep", "local")
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="other files"):
        sweep.run(make(), tmp_path / "mine", "local")


def test_a_run_refuses_a_config_with_axes(tmp_path: Path, make: Callable[..., grid.Grid]):
    from fedistill import config_file
    from fedistill.errors import ConfigError

    config = config_file.from_dict(tiny_tree(sweep={"clients": [1, 2]}))
    with pytest.raises(ConfigError, match="use `fedistill sweep`"):
        runner.run(config, tmp_path / "out", "local")
    assert json.loads(json.dumps(config_file.to_dict(config)))["sweep"]["clients"] == [1, 2]


def test_what_an_earlier_command_left_is_done_with_as_many_nodes_as_it_needs(
    tmp_path: Path, make: Callable[..., grid.Grid], monkeypatch: pytest.MonkeyPatch
):
    first = make(SweepConfig(clients=(3,), ipc=(1,)))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server_app, "_tracked", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(first, tmp_path / "sweep", "local")
    state = sweep.run(make(SweepConfig(clients=(1,), ipc=(1,))), tmp_path / "sweep", "local")
    assert {run["clients"]: run["status"] for run in state["runs"]} == {3: "done", 1: "done"}


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
