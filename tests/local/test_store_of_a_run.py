"""A run that finds its teachers and shares in the store: the same set, and it says so."""

import logging
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config

from fedistill import runner, tables, worker
from fedistill.distillers import inversion
from fedistill.distillers.sre2l import SRe2L

CONFIG = tiny_config(partition={"clients": 3}, federation={"min_clients": 3})


def test_a_second_run_reads_what_the_first_one_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    without = runner.run(CONFIG, tmp_path / "without", "local")
    first = runner.run(CONFIG, tmp_path / "first", "local", tmp_path / "store")
    for work in (worker, "squeeze"), (SRe2L, "distill"):
        monkeypatch.setattr(*work, None)  # would raise, and clients may not fail
    second = runner.run(CONFIG, tmp_path / "second", "local", tmp_path / "store")

    runs = (without, first, second)
    assert len({run["sets"]["1"]["sha256"] for run in runs}) == 1
    assert len({run["config_sha256"] for run in runs}) == 1
    assert without["from_store"] == first["from_store"] == {"squeeze": [], "recover": []}
    assert second["from_store"] == {"squeeze": [0, 1, 2], "recover": [0, 1, 2]}
    for stage in ("squeeze", "recover"):
        assert second["seconds"][stage] == first["seconds"][stage] > 0
    for run in runs:
        tables.print_result(run, tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if "from the store" in line]
    assert len([line for line in told if "squeeze of 3" in line]) == 1
    assert any(line.startswith("client 0  recover  100%") for line in told)


def test_what_clients_warned_of_is_told_by_a_run_that_finds_their_shares(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """And travels as before: the bytes of a run do not hang on where its shares come from."""
    term = {"name": "cmi", "weight": 1.0}
    config = tiny_config(distill={"regularizers": [term]}, teacher={"epochs": 1})
    ours, flowers = logging.getLogger("fedistill"), logging.getLogger("flwr")
    before = list(ours.handlers)
    runs, told = [], []
    for name in ("first", "second"):
        caplog.clear()
        flowers.addHandler(caplog.handler)
        try:
            runs.append(runner.run(config, tmp_path / name, "local", tmp_path / "store"))
        finally:
            flowers.removeHandler(caplog.handler)
        own = {it.getMessage()[:35] for it in caplog.records if it.name == "flwr"}
        told.append({text for text in own if "cmi" in text})
    assert runs[1]["from_store"]["recover"] == [0, 1]
    assert runs[1]["bytes"] == runs[0]["bytes"]
    assert told == [{"client 0, 1: cmi is 0 for a batch w"}] * 2
    assert ours.handlers == before  # or whoever runs two would read the second one's words twice


BATCHES = {"distill": {"ipc": [1], "iterations": 3, "batch_size": 10}, "partition": {"clients": 1}}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the batches that are optimised."""
    made: list[int] = []
    real = inversion._Run.batch

    def batch(self: Any, labels: Any, number: int, start: Any) -> Any:
        made.append(number)
        return real(self, labels, number, start)

    monkeypatch.setattr(inversion._Run, "batch", batch)
    return made


def test_a_larger_set_begins_with_the_batches_of_a_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = counted(monkeypatch)
    store = tmp_path / "store"
    large = tiny_config(**{**BATCHES, "distill": {**BATCHES["distill"], "ipc": [3]}})
    fresh = runner.run(large, tmp_path / "fresh", "local")
    assert made == [0, 1, 2]
    runner.run(tiny_config(**BATCHES), tmp_path / "small", "local", store)
    made.clear()
    grown = runner.run(large, tmp_path / "grown", "local", store)
    assert made == [1, 2]
    assert grown["sets"]["3"]["sha256"] == fresh["sets"]["3"]["sha256"]
    assert grown["from_store"]["recover"] == [0]


def test_a_run_that_was_cut_short_goes_on_behind_its_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = counted(monkeypatch)
    config = tiny_config(**{**BATCHES, "distill": {**BATCHES["distill"], "ipc": [3]}})
    real = inversion._Run.batch

    def dies(self: Any, labels: Any, number: int, start: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return real(self, labels, number, start)

    with monkeypatch.context() as patch:
        patch.setattr(inversion._Run, "batch", dies)
        with pytest.raises(KeyboardInterrupt):
            runner.run(config, tmp_path / "cut", "local", tmp_path / "store")
    made.clear()
    again = runner.run(config, tmp_path / "again", "local", tmp_path / "store")
    assert made == [2]
    assert again["seconds"]["recover"] > 0


def test_a_term_that_counts_steps_is_given_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = counted(monkeypatch)
    term = [{"name": "total_variation", "weight": 0.1}]
    config = tiny_config(**{**BATCHES, "distill": {**BATCHES["distill"], "regularizers": term}})
    runner.run(config, tmp_path / "a", "local", tmp_path / "store")
    more = tiny_config(
        **{**BATCHES, "distill": {**BATCHES["distill"], "regularizers": term, "ipc": [2]}}
    )
    made.clear()
    runner.run(more, tmp_path / "b", "local", tmp_path / "store")
    assert made == [0, 1]
