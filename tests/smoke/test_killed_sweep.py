"""A sweep in one Flower simulation: killed while it works, continued, and looked up in MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedistill import comparison, grid, sweep, tracking

CONFIG = """
name: smoke
data: {name: digits, fraction: 0.3}
model: {name: convnet, width: 8}
teacher: {epochs: 2, batch_size: 32}
distill: {iterations: 10}
relabel: {views: 5}
student: {epochs: 5, seeds: 1}
sweep: {clients: [1, 3], ipc: [1, 2]}
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedistill.cli", "sweep", "config.yaml", "--output", "swept"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def numbers(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (row.line, row.clients, row.result["sets"][str(row.line.ipc)]["sha256"], row.top1)
        for row in comparison.rows(folder)
    ]


@pytest.mark.smoke
def test_a_killed_sweep_goes_on_and_ends_with_the_numbers_of_one_that_was_not(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    first = tmp_path / "swept" / "runs" / "clients-01_seed-0" / "result.json"
    killed = start(tmp_path)
    deadline = time.monotonic() + 300
    while not first.is_file():
        assert killed.poll() is None, killed.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = first.read_text()

    again = start(tmp_path)
    told = again.communicate(timeout=400)[0]
    assert again.returncode == 0, told[-3000:]
    assert "2 of 2 federations are done" in told
    assert first.read_text() == before
    assert "accuracy over" in (tmp_path / "swept" / "report.html").read_text().lower()
    local = sweep.run(
        grid.load(tmp_path / "config.yaml", ["tracking.enabled=false"]), tmp_path / "local", "local"
    )
    assert numbers(tmp_path / "swept") == numbers(tmp_path / "local")
    assert local["axes"] == comparison.read(tmp_path / "swept")["axes"]
    _check_mlflow(tmp_path)


def _check_mlflow(folder: Path) -> None:
    import mlflow

    sweep_id = comparison.read(folder / "swept")["sweep_id"]
    where = tracking.stored_run(folder / "swept")
    assert where is not None
    client = mlflow.MlflowClient(where.tracking_uri)
    query = f"tags.sweep_id = '{sweep_id}' and tags.role = '{{}}'"
    lines = client.search_runs([where.experiment_id], query.format("line"))
    assert sorted(run.info.run_name for run in lines) == ["IPC 001", "IPC 002"]
    points = client.get_metric_history(lines[0].info.run_id, "acc_vs_clients")
    assert sorted(point.step for point in points) == [1, 3]
    runs = client.search_runs([where.experiment_id], query.format("experiment"))
    assert sorted(run.data.params["num_clients"] for run in runs) == ["1", "3"]
    assert {run.info.status for run in [*runs, *lines]} == {"FINISHED"}
    tags = client.get_experiment(where.experiment_id).tags
    assert f"mlflow.sharedViewState.accuracy-over-clients-{sweep_id}" in tags
    assert f"#/experiments/{where.experiment_id}/runs" in tags["mlflow.note.content"]
    assert json.loads(tags[f"mlflow.sharedViewState.runs-{sweep_id}"])["name"] == "smoke: runs"
