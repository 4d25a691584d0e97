"""A run that finds its teachers and shares in the store: the same set, and it says so."""

from pathlib import Path

import pytest
from fakes import tiny_config

from fedistill import client, runner, tables
from fedistill.distillers.sre2l import SRe2L

CONFIG = tiny_config(partition={"clients": 3}, federation={"min_clients": 3})


def test_a_second_run_reads_what_the_first_one_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    without = runner.run(CONFIG, tmp_path / "without", "local")
    first = runner.run(CONFIG, tmp_path / "first", "local", tmp_path / "store")
    for work in (client, "squeeze"), (SRe2L, "distill"):
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
