import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from fedistill import processes, simulation
from fedistill.errors import ConfigError, RunError
from fedistill.flower_output import clean_line, parse_outcome, parse_run_id
from fedistill.simulation import Outcome, Simulation, logical_cpus, stage_app

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tinyapp"
version = "0.1.0"
description = "An app for a test."
license = "Apache-2.0"
dependencies = ["flwr[simulation]>=1.41,<2"]
[tool.flwr.app]
publisher = "fedistill"
[tool.flwr.app.components]
serverapp = "tinyapp.server:app"
clientapp = "tinyapp.client:app"
[tool.flwr.app.config]
config-yaml = ""
output-dir = ""
"""

CLIENT = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("hello")
def hello(msg, context):
    answer = ConfigRecord({
        "partition": context.node_config["partition-id"],
        "yaml": context.run_config["config-yaml"],
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "progress": os.environ["FEDISTILL_PROGRESS"],
        "cwd": os.getcwd(),
    })
    return Message(RecordDict({"answer": answer}), reply_to=msg)
"""

SERVER = """
import json
import os
import time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    if context.run_config["config-yaml"] == "fail":
        raise RuntimeError("the teacher is ill")
    nodes = []
    while len(nodes) < 2:
        nodes = list(grid.get_node_ids())
        time.sleep(0.05)
    asked = [Message(RecordDict(), dst_node_id=node, message_type="query.hello") for node in nodes]
    answers = [dict(reply.content["answer"]) for reply in grid.send_and_receive(asked, timeout=240)]
    told = {"clients": answers, "threads": os.environ.get("OMP_NUM_THREADS", "")}
    Path(context.run_config["output-dir"], "out.json").write_text(json.dumps(told))
"""


@pytest.fixture
def tiny_app(tmp_path):
    package = tmp_path / "source" / "tinyapp"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").touch()
    (package / "client.py").write_text(CLIENT)
    (package / "server.py").write_text(SERVER)
    return package.parent


def processes_with(text: str) -> list[str]:
    """Command lines of the live processes whose environment or command holds the text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            seen = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in seen and int(folder.name) != os.getpid():
            found.append((folder / "cmdline").read_text())
    return found


def wait_until_gone(text: str) -> list[str]:
    deadline = time.monotonic() + 10
    while (left := processes_with(text)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


@pytest.mark.smoke
def test_two_runs_in_one_simulation(tmp_path, tiny_app, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("RAY_ADDRESS", "203.0.113.1:1")  # a cluster that must not be joined
    work = tmp_path / ("deep" * 20) / ("er" * 40)  # longer than a socket's path may be
    config = {"config-yaml": "a: [1, 2]\nb: 'x'\n", "output-dir": str(tmp_path)}
    lines: list[str] = []
    asked = {"num_clients": 2, "cpus_per_client": 1, "gpus_per_client": 0.0, "app": tiny_app}
    with Simulation(work, {"FEDISTILL_PROGRESS": "/tmp/progress"}) as running:
        scratch = running._env[processes.MARK]
        good = running.run(run_config=config, on_line=lines.append, **asked)
        bad = running.run(
            run_config={**config, "config-yaml": "fail"}, on_line=lines.append, **asked
        )
        refused = tmp_path / "empty"
        refused.mkdir()
        with pytest.raises(RunError, match="refused"):
            running.run(run_config={}, on_line=lines.append, **{**asked, "app": refused})
    assert (good.status, good.details) == ("completed", "")
    assert bad.status == "failed"
    assert "the teacher is ill" in bad.details
    assert good.run_id != bad.run_id
    told = json.loads((tmp_path / "out.json").read_text())
    clients = sorted(told["clients"], key=lambda client: client["partition"])
    assert [client["partition"] for client in clients] == [0, 1]
    assert {client["yaml"] for client in clients} == {config["config-yaml"]}
    assert {client["threads"] for client in clients} == {"1"}
    assert {client["progress"] for client in clients} == {"/tmp/progress"}
    assert {client["cwd"] for client in clients} == {str(work / "cwd")}
    assert told["threads"] == ""
    assert any("the teacher is ill" in line for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert (tiny_app / "pyproject.toml").read_text() == PYPROJECT
    assert not Path(scratch).exists()
    assert wait_until_gone(scratch) == []


@pytest.mark.smoke
def test_superlink_goes_when_its_owner_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fedistill.simulation import Simulation\n"
        "with Simulation(Path(sys.argv[1])) as running:\n"
        "    print(running._env['FEDISTILL_SIMULATION'], flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as owner:
        assert owner.stdout is not None
        scratch = owner.stdout.readline().strip()
        assert processes_with(scratch)
        owner.kill()
    assert wait_until_gone(scratch) == []
    assert not Path(scratch).exists()


def test_dead_superlink_is_told_with_its_log(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "flower-superlink"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 'the port is taken'\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(simulation, "command", lambda name: str(script))
    with Simulation(tmp_path / "work") as running:
        scratch = running._env[processes.MARK]
        with pytest.raises(RunError, match=r"(?s)exit code 3.*the port is taken"):
            running.run(
                run_config={},
                num_clients=1,
                cpus_per_client=1,
                gpus_per_client=0.0,
                on_line=print,
                app=tmp_path,
            )
    assert not Path(scratch).exists()


def test_impossible_request_is_refused_before_anything_starts(tmp_path):
    running = Simulation(tmp_path / "work")
    for cpus, gpus, named in ((9999, 0.0, "cpus_per_client"), (1, 1.5, "gpus_per_client")):
        with pytest.raises(ConfigError, match=named):
            running.run(
                run_config={},
                num_clients=1,
                cpus_per_client=cpus,
                gpus_per_client=gpus,
                on_line=print,
            )
    assert not (tmp_path / "work").exists()


def test_missing_command_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RunError, match=r"flwr\[simulation\]"), Simulation(tmp_path / "work"):
        pass


@pytest.mark.parametrize(
    ("clients", "each", "cores", "cpus"),
    [(5, 1, 8, 5), (50, 1, 8, 8), (5, 3, 8, 6), (1, 8, 8, 8), (2, 1, 1, 1), (3, 2, 5, 4)],
)
def test_logical_cpus(clients, each, cores, cpus):
    assert logical_cpus(clients, each, cores) == cpus


def test_more_cpus_than_cores_is_a_config_error():
    with pytest.raises(ConfigError, match="accepted: 1 to 2"):
        logical_cpus(5, 3, 2)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("\x1b[92mINFO \x1b[0m:      hello  \n", "INFO :      hello"),
        ("\x1b[38;5;12mx\x1b[K\n", "x"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x07\n", "link"),
        (" 10%\r 20%\r 30%\n", " 30%"),
        ("  indented [not markup]\n", "  indented [not markup]"),
        ("\n", ""),
    ],
)
def test_clean_line(raw, line):
    assert clean_line(raw) == line


def test_parse_run_id():
    assert parse_run_id("Successfully started run 98758 in federation x") == "98758"
    assert parse_run_id("Starting logstream for run_id `98758`") == ""


@pytest.mark.parametrize(
    ("status", "details", "outcome"),
    [
        ("finished:completed", "N/A", Outcome("completed", "", "7")),
        ("finished:failed", "boom: x", Outcome("failed", "boom: x", "7")),
        ("finished:stopped", "N/A", Outcome("stopped", "", "7")),
        ("running", "N/A", None),
    ],
)
def test_parse_outcome(status, details, outcome):
    runs = [{"run-id": "6", "status": "finished:failed"}]
    runs += [{"run-id": "7", "status": status, "status-details": details}]
    assert parse_outcome(json.dumps({"success": True, "runs": runs}), "7") == outcome


@pytest.mark.parametrize("answer", ["", "no json", "[]", '{"success": false}'])
def test_parse_outcome_of_a_broken_answer(answer):
    assert parse_outcome(answer, "7") is None


def make_package(root: Path) -> None:
    for name in ("fedistill/__init__.py", "fedistill/losses/bn.py", "strategies/base.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    (root / "fedistill/simulation.py").write_text("")
    (root / "fedistill/notes.txt").write_text("left out")


@pytest.mark.parametrize("pyproject", ["pyproject.toml", "fedistill/app.toml"])
def test_stage_app_from_a_checkout_and_from_a_wheel(tmp_path, monkeypatch, pyproject):
    root = tmp_path / "root"
    make_package(root)
    (root / pyproject).write_text("[project]\n")
    monkeypatch.setattr(simulation, "__file__", str(root / "fedistill/simulation.py"))
    stale = tmp_path / "work/app/fedistill/gone.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    staged = stage_app(tmp_path / "work")
    names = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    assert names == {
        "pyproject.toml",
        "fedistill/__init__.py",
        "fedistill/losses/bn.py",
        "fedistill/simulation.py",
        "strategies/base.py",
    }
    assert (staged / "pyproject.toml").read_text() == "[project]\n"


def test_stage_app_of_this_repository_declares_the_run_config(tmp_path):
    app = tomllib.loads((stage_app(tmp_path) / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert {"config-yaml", "output-dir"} <= app["config"].keys()


def test_simulation_imports_neither_flower_nor_torch():
    code = (
        "import sys, fedistill.simulation, fedistill.progress;"
        "print({'flwr', 'torch', 'rich', 'strategies'} & sys.modules.keys())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert ran.stdout.strip() == "set()"
