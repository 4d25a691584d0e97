"""A sweep from its grid to its table, in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_tree
from sweeps import hashes, numbers

from fedistill import comparison, grid, results, runner, sweep, tables
from fedistill.config import SweepConfig
from fedistill.errors import OutputError, PartitionError
from fedistill.journal import read_events
from strategies import experiment


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


def test_a_network_of_all_data_is_planned_once_a_seed(
    tmp_path: Path, make: Callable[..., grid.Grid]
):
    axes = SweepConfig(clients=(1, 2), seed=(0, 1))
    plans, _ = sweep.dry_run(make(axes, baselines=["full_data"]), tmp_path / "new", None)
    assert [bool(plan.load.on_all) for plan in plans] == [True, False, True, False]


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
