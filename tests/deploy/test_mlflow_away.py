"""MLflow's server is away at the start, or goes in the middle: a run ends well all the same."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config
from loopback import BIN, ROOT, free_port, until

from fedistill import config_file, results, runner
from fedistill.progress import Event

pytestmark = pytest.mark.deploy

START_S = 180.0


class Server:
    """An MLflow server that comes and goes; its database and its port stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(BIN / "mlflow"), "server", "--host=127.0.0.1", f"--port={self.port}",
                    "--workers=1", f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db",
                    f"--artifacts-destination={self.folder}/artifacts",
                ],
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        until(self.is_there, START_S, "the MLflow server answers")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def is_there(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def has(self, output: Path) -> dict[str, Any]:
        """Return what it knows of a run: status, metrics and artefacts of the top-level run."""
        stored = results.read_json(output / "mlflow.json")
        code = (
            "import json, sys; from mlflow import MlflowClient\n"
            "c = MlflowClient(sys.argv[1]); r = c.get_run(sys.argv[2])\n"
            "print(json.dumps([r.info.status, sorted(r.data.metrics),"
            " [a.path for a in c.list_artifacts(sys.argv[2])]]))"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, self.uri, stored["run_id"]],
            capture_output=True, text=True, check=True, timeout=120,
        ).stdout  # fmt: skip
        status, metrics, artifacts = json.loads(said.splitlines()[-1])
        return {"status": status, "metrics": metrics, "artifacts": artifacts}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("mlflow"))
    yield found
    found.stop()


def start(server: Server, folder: Path, **sections: Any) -> tuple[subprocess.Popen[str], Path]:
    """Start `fedistill run`."""
    config = tiny_config(**sections, tracking={"enabled": True, "uri": server.uri})
    path, output = folder / "config.yaml", folder / "run"
    path.write_text(config_file.dump(config))
    command = ["run", str(path), "--backend", "local", "--output", str(output)]
    return (
        subprocess.Popen(
            [sys.executable, "-m", "fedistill.cli", *command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ),
        output,
    )


def end(command: subprocess.Popen[str]) -> str:
    said, _ = command.communicate(timeout=240)
    assert command.returncode == 0, said
    return said


def check(server: Server, output: Path, said: str) -> None:
    """What was not delivered is told of, and can be delivered later."""
    result = results.read_json(output / results.RESULT)
    assert result["sets"]["1"]["students"]["convnet"]["n"] == 1
    assert "fedistill track" in said
    assert (output / "report.html").is_file()
    server.start()
    track = subprocess.run(
        [sys.executable, "-m", "fedistill.cli", "track", str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert track.returncode == 0, track.stdout + track.stderr
    found = server.has(output)
    assert found["status"] == "FINISHED"
    assert "acc_mean/ipc_001" in found["metrics"]
    assert {"figures", "result.json", "sets"} <= set(found["artifacts"])


def test_a_server_that_is_down_at_the_start_gets_everything_later(server: Server, tmp_path: Path):
    command, output = start(server, tmp_path)
    check(server, output, end(command))


def test_a_server_that_goes_down_in_the_middle_gets_the_rest_later(server: Server, tmp_path: Path):
    command, output = start(server, tmp_path, student={"epochs": 1500})

    def is_training() -> bool:
        path = output / runner.PROGRESS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        events = [event for event in map(Event.from_line, lines) if event is not None]
        began = any(event.stage == "evaluate" for event in events)
        return began and (output / "mlflow.json").is_file()  # some of it has arrived

    until(is_training, START_S, "students are trained")
    server.stop()
    check(server, output, end(command))
