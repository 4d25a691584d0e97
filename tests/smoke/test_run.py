"""The main job for real: `fedistill run` starts a Flower simulation and tracks it in MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedistill.sets import SyntheticSet

CONFIG = """
name: smoke
seed: 3
data: {name: digits}
partition: {name: dirichlet, alpha: 1.0, clients: 3, min_samples: 40}
model: {name: convnet, width: 8}
teacher: {epochs: 3, batch_size: 32}
distill: {ipc: [1, 4], iterations: 20, class_bn_weight: 1.0}
relabel: {views: 10}
student: {epochs: 10, seeds: 2}
baselines: [random, hard_label, ensemble, full_data, fedavg]
fedavg: {rounds: 2, epochs: 1}
"""


def run(folder: Path, output: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedistill.cli", "run", "config.yaml", "--output", output]
    done = subprocess.run(
        [*command, *options],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "distilled set" in done.stdout
    assert (folder / output / "report.html").is_file()
    result: dict[str, Any] = json.loads((folder / output / "result.json").read_text())
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smoke")
    (path / "config.yaml").write_text(CONFIG)
    return path


@pytest.mark.smoke
def test_a_simulation_ends_with_the_same_sets_as_a_local_run(folder: Path) -> None:
    simulated = run(folder, "simulated")
    local = run(folder, "local", "--backend", "local", "--set", "tracking.enabled=false")
    for ipc in ("1", "4"):
        assert simulated["sets"][ipc]["sha256"] == local["sets"][ipc]["sha256"]
        distilled = SyntheticSet.load(folder / "simulated" / "sets" / f"ipc-{ipc}")
        assert distilled.sha256 == simulated["sets"][ipc]["sha256"]
        assert len(distilled) == int(ipc) * 10
    # Accuracy too: students draw from seeds alone.
    assert simulated["sets"]["4"]["students"] == local["sets"]["4"]["students"]
    assert simulated["teachers"] == local["teachers"]
    for name in ("fedavg_1", "fedavg_2"):
        row = simulated["sets"]["4"]["baselines"][name]
        assert row["top1"] == local["sets"]["4"]["baselines"][name]["top1"]
    assert simulated["absent_clients"] == []
    assert simulated["bytes"]["up"] == local["bytes"]["up"] > 0
    _check_mlflow(simulated, folder)


def _check_mlflow(result: dict[str, Any], folder: Path) -> None:
    import mlflow

    where = result["mlflow"]
    assert where["tracking_uri"] == f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(where["tracking_uri"])
    stored = client.get_run(where["run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["num_clients"] == "3"
    assert stored.data.params["distill.iterations"] == "20"
    score = result["sets"]["4"]["students"]["convnet"]["top1_mean"]
    assert stored.data.metrics["acc_mean/ipc_004"] == pytest.approx(score, abs=1e-3)
    by_client = client.get_metric_history(where["run_id"], "teacher/top1_by_client")
    assert [point.step for point in by_client] == [0, 1, 2]
    names = {item.path for item in client.list_artifacts(where["run_id"])}
    assert {"config", "figures", "partition", "result.json", "sets"} <= names
    children = client.search_runs(
        [where["experiment_id"]], f"tags.mlflow.parentRunId = '{where['run_id']}'"
    )
    assert sorted(run.data.tags["role"] for run in children) == ["client"] * 3 + ["ipc"] * 2
