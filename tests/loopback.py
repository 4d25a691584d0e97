"""A deployment on this machine: a SuperLink with TLS, and SuperNodes that have keys.

The processes are those of `docker/compose.tls.yaml`, without containers: the ServerApp runs under a
SuperExec of its own, so that a run outlives the SuperLink.
"""

import http.client
import importlib.util
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedistill import processes

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LIVELY = ROOT / "tests" / "lively_supernode.py"
GIVEN_UP_S = 22.0  # after its last sign of life, with this
START_S = 180.0
NAME = "loopback"  # of the SuperLink, in the operator's config.toml


def until(found: Callable[[], bool], seconds: float, what: str, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Loopback:
    """The processes of one deployment; all end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.runs = folder / "runs"
        self.keys = folder / "credentials"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.nodes: dict[str, list[str]] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def credentials(self, *devices: str, folder: Path | None = None) -> None:
        """Make them as an operator does."""
        script = ROOT / "docker" / "credentials.py"
        spec = importlib.util.spec_from_file_location("credentials", script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.make(folder or self.keys, ["127.0.0.1"], list(devices))

    def environment(self, home: str, **more: str) -> dict[str, str]:
        outside = {key: value for key, value in os.environ.items() if key != processes.MARK}
        return {
            **outside,
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
            "FLWR_HOME": str(self.folder / home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            "OMP_NUM_THREADS": "1",
            "FEDISTILL_RUNS": str(self.runs),
            **more,
        }

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process; its output goes to a file of its name."""
        program, *arguments = command
        if program == "flower-supernode":
            program, arguments = sys.executable, [str(LIVELY), *arguments]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / program), *arguments],
                cwd=self.folder,
                env=self.environment(f"home-{name}", **environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def start_superlink(self) -> None:
        keys = self.keys
        self.start(
            "superlink",
            "flower-superlink",
            f"--ssl-ca-certfile={keys}/ca.crt",
            f"--ssl-certfile={keys}/server.crt",
            f"--ssl-keyfile={keys}/server.key",
            "--enable-supernode-auth",
            f"--superexec-auth-secret-file={keys}/server.secret",
            "--isolation=process",
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--database={self.folder}/state.db",
            "--disable-runtime-dependency-installation",
        )
        until(self.is_healthy, START_S, "the SuperLink answers")

    def start_serverapps(self, **environment: str) -> None:
        """Start what runs the ServerApps."""
        self.start(
            "serverapps",
            "flower-superexec",
            f"--root-certificates={self.keys}/ca.crt",
            f"--superexec-auth-secret-file={self.keys}/server.secret",
            f"--runtime-api-address={self.address}",
            **environment,
        )

    def is_healthy(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.keys / "ca.crt"))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=2, context=context)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def start_node(
        self, name: str, config: Mapping[str, Any], progress: Path | None = None, **options: str
    ) -> None:
        """Start a SuperNode with its own key and config.

        Args:
            name: of the device.
            config: its node config.
            progress: where its ClientApps say what they do.
            **options: of flower-supernode; an empty one is left out.
        """
        settings = {
            "root-certificates": f"{self.keys}/ca.crt",
            "auth-supernode-private-key": f"{self.keys}/{name}/node.key",
            "superlink": self.address,
            "host": "127.0.0.1",
            "port": str(free_port()),
            "node-config": " ".join(f"{key}={json.dumps(value)}" for key, value in config.items()),
            **{key.replace("_", "-"): value for key, value in options.items()},
        }
        arguments = [f"--{key}={value}" for key, value in settings.items() if value]
        more = {"FEDISTILL_PROGRESS": str(progress)} if progress else {}
        self.start(name, "flower-supernode", *arguments, FEDISTILL_RUNS="/nowhere", **more)

    def operator(self) -> dict[str, str]:
        """Return the environment of the operator, who knows the SuperLink by name."""
        environment = self.environment("operator")
        home = Path(environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        entry = {"address": self.address, "root-certificates": str(self.keys / "ca.crt")}
        tree = {"superlink": {"default": NAME, NAME: entry}}
        if not (home / "config.toml").exists():  # commands that run now read it
            (home / "config.toml").write_text(tomli_w.dumps(tree))
        return environment

    def flwr(self, *arguments: str) -> str:
        return subprocess.run(
            [str(BIN / "flwr"), *arguments],
            env=self.operator(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout

    def register(self, *names: str) -> None:
        def one(name: str) -> str:
            key = self.keys / "devices" / f"{name}.pub"
            return self.flwr("supernode", "register", str(key), NAME, "--format", "json")

        self.operator()  # before all of them at once
        with ThreadPoolExecutor() as pool:
            for answer in pool.map(one, names):
                assert '"success": true' in answer, answer

    def online(self) -> int:
        answer = self.flwr("supernode", "list", NAME, "--format", "json")
        nodes = json.loads(answer).get("nodes", [])
        return sum(node["status"] == "online" for node in nodes)

    def run(self, *arguments: str, **environment: str) -> "Command":
        """Start `fedistill ...` as the operator does."""
        return Command(self, arguments, environment)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process and what it has started, as a power cut does."""
        process = self.processes.pop(name)
        for pid in [process.pid, *children(process.pid)]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        process.wait(30)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def logs(self) -> str:
        """Return the ends of all logs, for a failed test."""
        ends = []
        for path in sorted(self.folder.glob("*.log")):
            ends += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(ends)


class Command:
    """A command of the operator that goes on."""

    def __init__(
        self, loopback: Loopback, arguments: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        self._loopback = loopback
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedistill.cli", *arguments],
            env=loopback.operator() | {"PYTHONPATH": str(ROOT)} | dict(environment),
            cwd=loopback.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, code: int = 0, seconds: float = 400.0) -> str:
        """Wait for the end, and return what it printed."""
        try:
            said, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _ = self._process.communicate()
            pytest.fail(f"not within {seconds:g} s:\n{said}\n{self._loopback.logs()}")
        assert self._process.returncode == code, f"{said}\n{self._loopback.logs()}"
        return said


def children(pid: int) -> list[int]:
    """Return the ids of all processes that a process has started, theirs too."""
    parents = dict[int, list[int]]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    found = parents.get(pid, [])
    return [*found, *(below for child in found for below in children(child))]
