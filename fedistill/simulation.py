"""Start a Flower simulation of this app from Python, and tell how it ended.

Flower is used through its commands only (`flower_commands.py`), so that Ray, CUDA and thread
settings of a run cannot leak into our process. What Flower and Ray would share with the
rest of the machine is kept apart: own `FLWR_HOME`, own port, own Ray cluster in its own short
temporary folder, an empty working folder (Ray puts it first on `sys.path` of the clients), and
a staged copy of the app (Flower may rewrite the pyproject.toml of what it runs).
"""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import tomli_w

from fedistill.cores import usable_cores
from fedistill.errors import ConfigError, RunError
from fedistill.flower_commands import FlowerCommands, command
from fedistill.flower_output import Outcome, log_end
from fedistill.processes import environment, terminate, watcher

__all__ = ["Outcome", "Simulation", "logical_cpus", "stage_app"]

START_TIMEOUT_S = 60.0
SUPERLINK = "simulation"  # the name of our SuperLink in our own FLWR_HOME


class Simulation:
    """Owns one SuperLink (Flower's server) for several runs; use it as a context manager.

    Entering starts the SuperLink and returns at once, so that its start-up overlaps with the
    caller's own work; the first `run` waits for it. Leaving ends it and all its children.
    """

    def __init__(self, work: Path, env: Mapping[str, str] | None = None) -> None:
        """Prepare a simulation; nothing is started yet.

        Args:
            work: a folder of ours; FLWR_HOME, the staged app and the log live below it.
            env: variables for ServerApp and ClientApps, on top of this process's own.
        """
        self.work = work.absolute()
        self.log = self.work / "superlink.log"
        self._extra = dict(env or {})
        self._env: dict[str, str] = {}
        self._resources = contextlib.ExitStack()
        self._superlink: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            # Not below `work`: Ray's sockets lie here, and their paths end at 107 characters.
            short = "/tmp" if os.path.isdir("/tmp") else None
            scratch = tempfile.mkdtemp(prefix="fd-", dir=short)
            resources.callback(shutil.rmtree, scratch, ignore_errors=True)
            self._port = _free_port()
            self._env = environment(self.work, scratch, self._extra)
            _write_home(self.work, self._port)
            process = self._start_superlink()
            resources.callback(process.wait)
            resources.callback(terminate, process.pid, scratch)
            resources.enter_context(watcher(process.pid, scratch))
            self._superlink = process
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._superlink = None
        self._resources.close()

    def run(
        self,
        *,
        run_config: Mapping[str, str],
        num_clients: int,
        cpus_per_client: int,
        gpus_per_client: float,
        on_line: Callable[[str], None],
        app: Path | None = None,
    ) -> Outcome:
        """Run the app once and wait for its end.

        Args:
            run_config: values for the keys that `[tool.flwr.app.config]` declares.
            num_clients: how many simulated SuperNodes.
            cpus_per_client: CPU cores of one client; clients beyond the machine take turns.
            gpus_per_client: share of a GPU; 0 hides the GPUs from the clients.
            on_line: gets every log line of the run, without colour codes. Flower sends lines
                in batches, seconds apart; `display.py` is the live view.
            app: another Flower app to run instead of this one.

        Raises:
            ConfigError: a client asks for more CPUs than there are, or an odd share of GPUs.
            RunError: the SuperLink did not start or died, or Flower refused the run.
            KeyboardInterrupt: Ctrl-C; the run is stopped first.
        """
        resources = federation_config(num_clients, cpus_per_client, gpus_per_client)
        config = self.work / "run-config.toml"
        config.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        app = app or stage_app(self.work)
        self._wait_until_healthy()
        options = ["--run-config", str(config), "--federation-config", resources]
        commands = FlowerCommands(SUPERLINK, self._cwd, self._env, self._check_superlink)
        return commands.submit(app, options, on_line)

    def _start_superlink(self) -> subprocess.Popen[bytes]:
        arguments = [command("flower-superlink"), "--insecure", "--simulation"]
        arguments += ["--host", "127.0.0.1", "--port", str(self._port)]
        arguments += ["--disable-runtime-dependency-installation"]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                arguments,
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to handle
            )

    @property
    def _cwd(self) -> Path:
        return self.work / "cwd"

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_healthy(self._port):
            self._check_superlink()
            if time.monotonic() > deadline:
                raise RunError(
                    f"Flower's SuperLink did not answer within {START_TIMEOUT_S:.0f} s. "
                    f"The end of {self.log}:\n{log_end(self.log)}"
                )
            time.sleep(0.05)

    def _check_superlink(self) -> None:
        if self._superlink is None:
            raise RunError("the simulation is not running; use it in a `with` block")
        if self._superlink.poll() is not None:
            raise RunError(
                f"Flower's SuperLink ended with exit code {self._superlink.returncode}. "
                f"The end of {self.log}:\n{log_end(self.log)}"
            )


def stage_app(work: Path) -> Path:
    """Copy the Flower app (Python files and its pyproject.toml) to `work / "app"`.

    Works from a checkout and from an installed wheel, which carries the file as `app.toml`.
    """
    package = Path(__file__).resolve().parent
    target = work / "app"
    shutil.rmtree(target, ignore_errors=True)
    for folder in (package, package.parent / "strategies"):
        for source in folder.rglob("*.py"):
            copy = target / source.relative_to(package.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    packaged = package / "app.toml"
    pyproject = packaged if packaged.is_file() else package.parent / "pyproject.toml"
    shutil.copyfile(pyproject, target / "pyproject.toml")
    return target


def logical_cpus(num_clients: int, cpus_per_client: int, cores: int) -> int:
    """How many CPUs to give to Ray: enough for as many clients at a time as fit the cores.

    Never for more clients than there are: an idle actor costs seconds to start.

    Raises:
        ConfigError: one client asks for more than the machine has.
    """
    if cpus_per_client > cores:
        raise ConfigError(
            f"federation.cpus_per_client is {cpus_per_client}, but this machine has {cores} "
            f"CPU cores; accepted: 1 to {cores}"
        )
    return min(cores // cpus_per_client, num_clients) * cpus_per_client


def federation_config(num_clients: int, cpus_per_client: int, gpus_per_client: float) -> str:
    if gpus_per_client > 1 and gpus_per_client != int(gpus_per_client):
        raise ConfigError(
            f"federation.gpus_per_client is {gpus_per_client}; "
            "accepted: a share from 0 to 1, or a whole number"
        )
    cpus = logical_cpus(num_clients, cpus_per_client, usable_cores())
    return (
        f"num-supernodes={num_clients} init-args-num-cpus={cpus} "
        f"client-resources-num-cpus={cpus_per_client} "
        f"client-resources-num-gpus={float(gpus_per_client)}"
    )


def _write_home(work: Path, port: int) -> None:
    for folder in (work / "home", work / "cwd"):
        folder.mkdir(parents=True, exist_ok=True)
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    text = tomli_w.dumps({"superlink": {"default": SUPERLINK, SUPERLINK: connection}})
    (work / "home" / "config.toml").write_text(text, encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
