"""The processes of a simulation: what they inherit from us, and how all of them end.

Every process that Flower and Ray start inherits the variable `MARK`. By it we find them, also
those that have left our process tree, and end them when a simulation is over; a watcher does so
when our own process was killed. The other variables keep a simulation apart from what else runs
on the machine.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

GRACE_S = 3.0
MARK = "FEDISTILL_SIMULATION"  # every process of a simulation inherits this variable

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


_ENDED = -1


def environment(work: Path, scratch: str, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of all processes of a simulation.

    Args:
        work: the folder of the simulation; FLWR_HOME lies below it.
        scratch: Ray's temporary folder, and the value of `MARK`.
        extra: variables on top, the last word.
    """
    env = {key: value for key, value in os.environ.items() if key not in _UNSET}
    # Flower starts its own commands by bare name.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    for key in ("no_proxy", "NO_PROXY"):
        env[key] = ",".join(filter(None, [env.get(key), "127.0.0.1", "localhost"]))
    own = {"FLWR_HOME": str(work / "home"), "RAY_TMPDIR": scratch, MARK: scratch}
    return env | _SETTINGS | own | dict(extra)


@contextlib.contextmanager
def watcher(superlink: int, scratch: str) -> Iterator[None]:
    """Let another process clean up when ours dies without a chance to.

    It waits for the end of a pipe that only we hold open, so that even SIGKILL is covered.
    """
    code = (
        "import sys; sys.stdin.read(); sys.path.insert(0, sys.argv[1]); "
        "from fedistill.processes import terminate; terminate(int(sys.argv[2]), sys.argv[3])"
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


def terminate(superlink: int, scratch: str) -> None:
    """End the SuperLink and all that it started, and remove their temporary files.

    What is not gone in time is killed: the process of a ServerApp does not end before its
    thread does, whatever the signal, and Ray's agents look for their parent only rarely.
    """
    sessions = {superlink, *map(_session, _marked(scratch))} - {_ENDED}
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(superlink, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while _members(sessions) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for pid in _members(sessions):
            with contextlib.suppress(OSError):
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
    """The session of a process that is alive; `_ENDED` for one that is not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return _ENDED
    # pid (command) state parent group session ...; a command may hold spaces
    state, _, _, session = stat.rpartition(")")[2].split()[:4]
    return -1 if state == "Z" else int(session)


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
