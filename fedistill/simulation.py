"""Start a Flower simulation of this app from Python, and tell how it ended.

One `Simulation` owns one SuperLink process (Flower's server) for one or several runs; each run
is one `flwr run`. Flower is used through its commands only, because those are its stable
interface, and because a simulation then has its own processes: Ray, CUDA and thread settings
of a run cannot leak into ours.

What Flower and Ray would otherwise share with the rest of the machine is kept apart: own
`FLWR_HOME`, own port, own Ray cluster in its own short temporary folder, an empty working
folder (Ray puts the working folder first on `sys.path` of the clients), and a staged copy of
the app (Flower may rewrite the pyproject.toml of what it runs).
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from fedistill.errors import ConfigError, RunError

START_TIMEOUT_S = 60.0
CLI_TIMEOUT_S = 30.0
GRACE_S = 3.0
SUPERLINK = "simulation"  # the name of our SuperLink in our own FLWR_HOME
MARK = "FEDISTILL_SIMULATION"  # every process of a simulation inherits this variable

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_STARTED = re.compile(r"Successfully started run (\d+)")
_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # Seconds between two looks for a submitted run; the default is 1.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    # "local" always starts a new cluster; without it Ray joins one that runs on this machine.
    "RAY_ADDRESS": "local",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would start one idle worker per CPU, which Flower's actors never use: they ask for a
    # runtime_env of their own. Measured: 1 CPU second each.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
# Ray sets OMP_NUM_THREADS to the CPUs of a client, but only where it is unset, and the
# ServerApp is to use all cores.
_UNSET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` is completed, failed or stopped; `details` says why."""

    status: str
    details: str
    run_id: str


class Simulation:
    """Owns one SuperLink process; use it as a context manager.

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
            self._env = _environment(self.work, scratch, self._extra)
            _write_home(self.work, self._port)
            process = self._start_superlink()
            resources.callback(process.wait)
            resources.callback(_terminate, process.pid, scratch)
            resources.enter_context(_watcher(process.pid, scratch))
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
                in batches, seconds apart; `progress.py` is the live view.
            app: another Flower app to run instead of this one.

        Raises:
            ConfigError: a client asks for more CPUs than there are, or an odd share of GPUs.
            RunError: the SuperLink did not start or died, or Flower refused the run.
            KeyboardInterrupt: Ctrl-C; the run is stopped first.
        """
        resources = _federation_config(num_clients, cpus_per_client, gpus_per_client)
        config = self.work / "run-config.toml"
        config.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        app = app or stage_app(self.work)
        self._wait_until_healthy()
        options = ["--stream", "--run-config", str(config), "--federation-config", resources]
        run_id = self._stream([str(app), SUPERLINK, *options], on_line)
        return self._outcome(run_id)

    def _start_superlink(self) -> subprocess.Popen[bytes]:
        command = [_command("flower-superlink"), "--insecure", "--simulation"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--disable-runtime-dependency-installation"]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, **self._surroundings()
            )

    def _surroundings(self) -> dict[str, Any]:
        """Where every child runs; its own session, because Ctrl-C is ours to handle."""
        return {
            "cwd": self.work / "cwd",
            "env": self._env,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
        }

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_healthy(self._port):
            self._check_superlink()
            if time.monotonic() > deadline:
                raise RunError(
                    f"Flower's SuperLink did not answer within {START_TIMEOUT_S:.0f} s. "
                    f"The end of {self.log}:\n{_tail(self.log)}"
                )
            time.sleep(0.05)

    def _check_superlink(self) -> None:
        if self._superlink is None:
            raise RunError("the simulation is not running; use it in a `with` block")
        if self._superlink.poll() is not None:
            raise RunError(
                f"Flower's SuperLink ended with exit code {self._superlink.returncode}. "
                f"The end of {self.log}:\n{_tail(self.log)}"
            )

    def _stream(self, arguments: list[str], on_line: Callable[[str], None]) -> str:
        """Submit a run, pass its log on until it ends, and return its id."""
        run_id = ""
        lines: list[str] = []
        with subprocess.Popen(
            [_command("flwr"), "run", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            **self._surroundings(),
        ) as process:
            try:
                for raw in process.stdout or ():
                    line = clean_line(raw)
                    lines = [*lines[-19:], line]
                    run_id = run_id or parse_run_id(line)
                    on_line(line)
            except BaseException:
                process.kill()
                if run_id:
                    self._flwr("stop", run_id, SUPERLINK)
                raise
        if not run_id:
            self._check_superlink()
            raise RunError("Flower refused the run:\n" + "\n".join(lines))
        return run_id

    def _outcome(self, run_id: str) -> Outcome:
        """Ask how a run ended: `flwr run` exits with 0 also when the run failed."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self._check_superlink()
            answer = self._flwr("list", SUPERLINK, "--run-id", run_id, "--format", "json")
            outcome = parse_outcome(answer, run_id)
            if outcome is not None:
                return outcome
            if run_id in answer:  # only the log has ended, the run goes on
                deadline = time.monotonic() + START_TIMEOUT_S
            elif time.monotonic() > deadline:
                raise RunError(f"Flower does not tell how run {run_id} ended; it says: {answer}")
            time.sleep(0.5)

    def _flwr(self, *arguments: str) -> str:
        """Run a short `flwr` command and return what it prints; nothing when it hangs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            answer: str = subprocess.run(
                [_command("flwr"), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                timeout=CLI_TIMEOUT_S,
                check=False,
                **self._surroundings(),
            ).stdout
            return answer
        return ""


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


def clean_line(raw: str) -> str:
    """Strip colour codes, trailing space, and what a carriage return has overwritten."""
    return _ANSI.sub("", raw).rstrip().rpartition("\r")[2]


def parse_run_id(line: str) -> str:
    """Return the run id that `flwr run` announces in this line, or nothing."""
    found = _STARTED.search(line)
    return found[1] if found else ""


def parse_outcome(answer: str, run_id: str) -> Outcome | None:
    """Read the JSON of `flwr list`; None while the run has not finished."""
    try:
        runs: list[dict[str, Any]] = json.loads(answer).get("runs", [])
    except (json.JSONDecodeError, AttributeError):
        return None
    for run in runs:
        state, _, status = str(run.get("status", "")).partition(":")
        if str(run.get("run-id")) == run_id and state == "finished":
            details = str(run.get("status-details") or "")
            return Outcome(status, "" if details == "N/A" else details, run_id)
    return None


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


def _federation_config(num_clients: int, cpus_per_client: int, gpus_per_client: float) -> str:
    if gpus_per_client > 1 and gpus_per_client != int(gpus_per_client):
        raise ConfigError(
            f"federation.gpus_per_client is {gpus_per_client}; "
            "accepted: a share from 0 to 1, or a whole number"
        )
    cpus = logical_cpus(num_clients, cpus_per_client, _usable_cores())
    return (
        f"num-supernodes={num_clients} init-args-num-cpus={cpus} "
        f"client-resources-num-cpus={cpus_per_client} "
        f"client-resources-num-gpus={float(gpus_per_client)}"
    )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: respects taskset and batch schedulers
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment(work: Path, scratch: str, extra: Mapping[str, str]) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if key not in _UNSET}
    # Flower starts its own commands by bare name.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    for key in ("no_proxy", "NO_PROXY"):
        env[key] = ",".join(filter(None, [env.get(key), "127.0.0.1", "localhost"]))
    own = {"FLWR_HOME": str(work / "home"), "RAY_TMPDIR": scratch, MARK: scratch}
    return env | _SETTINGS | own | dict(extra)


def _write_home(work: Path, port: int) -> None:
    for folder in (work / "home", work / "cwd"):
        folder.mkdir(parents=True, exist_ok=True)
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    text = tomli_w.dumps({"superlink": {"default": SUPERLINK, SUPERLINK: connection}})
    (work / "home" / "config.toml").write_text(text, encoding="utf-8")


def _command(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise RunError(f"{path} is missing; install flwr[simulation] into this environment")
    return str(path)


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


def _tail(path: Path, lines: int = 20) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join(clean_line(line) for line in text.splitlines()[-lines:])


@contextlib.contextmanager
def _watcher(superlink: int, scratch: str) -> Iterator[None]:
    """Let another process clean up when ours dies without a chance to.

    It waits for the end of a pipe that only we hold open, so that even SIGKILL is covered.
    """
    code = (
        "import sys; sys.stdin.read(); sys.path.insert(0, sys.argv[1]); "
        "from fedistill.simulation import _terminate; _terminate(int(sys.argv[2]), sys.argv[3])"
    )
    root = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code, root, str(superlink), scratch],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            process.kill()


def _terminate(superlink: int, scratch: str) -> None:
    """End the SuperLink and all that it started, and remove their temporary files.

    What is not gone in time is killed: the process of a ServerApp does not end before its
    thread does, whatever the signal, and Ray's agents look for their parent only rarely.
    """
    sessions = {superlink, *map(_session, _marked(scratch))}
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(superlink, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while _members(sessions) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for pid in _members(sessions):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)  # here too, for the watcher


def _marked(scratch: str) -> list[int]:
    """Find processes by the variable that all children of the SuperLink inherit.

    Needs /proc; elsewhere we find none, and Flower's and Ray's own watchdogs must do.
    """
    mark = f"{MARK}={scratch}".encode()
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):  # it has ended, or is not ours to read
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _members(sessions: set[int]) -> list[int]:
    # Not by the variable: Ray's processes overwrite theirs with a title.
    return [pid for pid in _pids() if _session(pid) in sessions]


def _session(pid: int) -> int:
    """The session of a process that is alive; -1 for one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return -1
    # pid (command) state parent group session ...; a command may hold spaces
    state, _, _, session = stat.rpartition(")")[2].split()[:4]
    return -1 if state == "Z" else int(session)


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
