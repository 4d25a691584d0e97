"""Tracking in MLflow, by replaying the journal of a run into a store.

`MlflowSink` follows the journal while the run goes on, `deliver` sends afterwards what a store
lacks; both are the same replay. It is idempotent: the journal keeps the time of every event, so
a point that comes twice is stored once; parameters are sent once; artefacts go by name; and the
runs are found again by the id of the journal. A run never fails because of MLflow: after the
first error the sink warns once and is silent.
"""

import contextlib
import json
import logging
import os
import shlex
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fedistill import mlflow_schema, mlflow_store
from fedistill.errors import UserError
from fedistill.journal import (
    JOURNAL,
    MAIN_RUN,
    Event,
    Journal,
    absolute_uri,
    default_uri,
    flatten,
    read_events,
    source_tags,
    sqlite_path,
    without_secrets,
)
from fedistill.mlflow_store import Store, locked

__all__ = [
    "Journal",
    "MlflowSink",
    "Status",
    "StoredRun",
    "close_if_open",
    "default_uri",
    "deliver",
    "flatten",
    "named_store",
    "source_tags",
    "stored_run",
    "ui_command",
    "without_secrets",
]

STATE = "mlflow.json"
Status = Literal["FINISHED", "FAILED", "KILLED"]  # of a run that has ended, in MLflow's words
_EVENTS_A_BATCH = 500
_POLL_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRun:
    """Where MLflow keeps a run."""

    tracking_uri: str
    experiment_id: str
    run_id: str


class MlflowSink:
    """Sends a journal to MLflow from a background thread, while it is being written.

    Start it after `Journal.start`. Nothing that MLflow does reaches the run: the first error
    ends the sending with one call of `warn`, and `fedistill track` sends the rest later.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], uri: str | None = None) -> None:
        """Prepare to follow the journal in `folder`.

        Args:
            folder: the output folder.
            warn: takes the one line for the user; may be called from the thread.
            uri: the store, when it is not the one named in the journal.
        """
        self._folder = folder
        self._uri = uri
        self._warn = warn
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._stored: StoredRun | None = None
        # A daemon, so that a store that hangs does not keep the process alive.
        self._thread = threading.Thread(target=self._follow, name="mlflow-sink", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self, timeout_s: float) -> StoredRun | None:
        """Wait until all that is in the journal is sent, but no longer than `timeout_s`.

        Returns:
            Where the run is, or None if MLflow did not get all of it.
        """
        self._closing.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._give_up(f"not everything was sent within {timeout_s:g} s")
        return None if self._given_up.is_set() else self._stored

    def _follow(self) -> None:
        """Send until `close` is called and the journal is at its end."""
        try:
            with _replay(self._folder, self._uri, self._warn) as replay:
                while not self._given_up.is_set():
                    closing = self._closing.is_set()  # first: what came before it must be sent
                    if replay.send_some():
                        continue
                    if closing:
                        self._stored = replay.stored
                        return
                    self._closing.wait(_POLL_S)
        except Exception as error:  # whatever it is, the run goes on
            self._give_up(_reason(error))

    def _give_up(self, reason: str) -> None:
        """Stop calling MLflow, and say so unless that was done before."""
        with self._lock:
            if self._given_up.is_set():
                return
            self._given_up.set()
        folder = shlex.quote(str(self._folder))
        self._warn(
            f"MLflow tracking stopped ({reason}); the run goes on and keeps its journal: "
            f"`fedistill track {folder}` sends it later"
        )


def deliver(
    folder: Path, uri: str | None = None, warn: Callable[[str], None] = _log.warning
) -> StoredRun:
    """Send to MLflow what the journal of a run holds and the store lacks.

    Args:
        folder: the output folder of a run.
        uri: the store, when it is not the one named in the journal.
        warn: takes a line for each artefact that is no longer there.

    Raises:
        UserError: the folder holds no journal, another process is sending it, or the store is of
            another MLflow, cannot be reached or refuses it.
    """
    mlflow_schema.check_store(absolute_uri(uri or _last_start(folder)["uri"]))
    try:
        with _replay(folder, uri, warn) as replay:
            while replay.send_some():
                pass
            return replay.stored
    except UserError:
        raise
    except Exception as error:  # mlflow raises what its many backends raise
        raise UserError(
            f"MLflow did not take the run in {folder} ({_reason(error)}); check that the store "
            f"is up and `tracking.uri` is right, then run the command again: it continues where "
            f"it stopped"
        ) from error


def fetch(uri: str, tags: Mapping[str, str], folder: Path, last: str) -> StoredRun | None:
    """Copy what MLflow keeps of the newest run with some tags into a folder.

    Args:
        uri: of the store.
        tags: of the run.
        folder: where to.
        last: the file that is copied when all others are there.

    Returns:
        Where it is kept; None: there is no such run.
    """
    uri = absolute_uri(uri)
    found = mlflow_store.fetch(uri, tags, folder, last)
    return None if found is None else StoredRun(without_secrets(uri), *found)


def close_if_open(folder: Path, status: Status, *, send: bool) -> None:
    """End the journal of a run whose ServerApp could not, and tell MLflow.

    Args:
        folder: the output folder; one without an open journal is left alone.
        status: how the run ended.
        send: whether MLflow is told at once; if it cannot be, `deliver` does it later.
    """
    last = ""
    for event, _ in read_events(folder / JOURNAL):
        last = event["event"] if event["event"] in ("start", "end") else last
    if last != "start":
        return
    Journal(folder).end(status)
    if send:
        with contextlib.suppress(UserError):
            deliver(folder)


def stored_run(folder: Path) -> StoredRun | None:
    """Return where the run of an output folder is stored, None if it is not, or not yet."""
    state = _read_state(folder)
    if state is None:
        return None
    return StoredRun(state["tracking_uri"], state["experiment_id"], state["run_id"])


def named_store(folder: Path) -> str | None:
    """Return the address of the store that a folder's run is in, or is to be in, without secrets.

    None if it has no journal, or its store was a file that is gone.
    """
    stored = stored_run(folder)
    try:
        uri: str = stored.tracking_uri if stored is not None else _last_start(folder)["uri"]
    except UserError:
        return None
    file = sqlite_path(uri)
    return uri if file is None or file.is_file() else None


def ui_command(uri: str, experiment_id: str | None = None, page: str = "") -> str:
    """Return the line that opens MLflow's pages: a command, or the address of a server.

    Args:
        uri: of the store.
        experiment_id: opens on the runs of this experiment.
        page: opens there instead: the part of an address behind the server's.
    """
    # Without workflowType an experiment opens on the empty page for language models.
    runs = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    link = page or (runs if experiment_id is not None else "")
    uri = without_secrets(uri)
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/") + link
    command = f"MLFLOW_DISABLE_TELEMETRY=true mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return f"{command}  # then open http://127.0.0.1:5000{link}"


class _Replay:
    """Sends one journal to one store, and remembers in `mlflow.json` how far it came."""

    def __init__(self, folder: Path, uri: str | None, warn: Callable[[str], None]) -> None:
        self._folder = folder
        start = _last_start(folder)
        self._journal_id = start["journal_id"]
        address = absolute_uri(uri or start["uri"])
        self._uri = without_secrets(address)
        self._store = Store(address, start, folder, warn)
        self._offset = self._known_offset()

    def send_some(self) -> bool:
        """Send the next events; False when there were none."""
        batch = list(islice(read_events(self._folder / JOURNAL, self._offset), _EVENTS_A_BATCH))
        if batch:
            self._store.send([event for event, _ in batch])
            self._offset = batch[-1][1]
            self._remember()
        return bool(batch)

    @property
    def stored(self) -> StoredRun:
        """Where the run is."""
        return StoredRun(self._uri, self._store.experiment_id, self._store.runs[MAIN_RUN])

    def _known_offset(self) -> int:
        """Continue where an earlier replay stopped, if this store still has what it sent."""
        state = _read_state(self._folder)
        if state is None:
            return 0
        same = (state["journal_id"], state["tracking_uri"]) == (self._journal_id, self._uri)
        there = state["runs"].items() <= self._store.runs.items()
        return int(state["offset"]) if same and there else 0

    def _remember(self) -> None:
        """Write the state so that a reader sees the old one or the new one, never a part."""
        state = {
            **asdict(self.stored),
            "journal_id": self._journal_id,
            "runs": self._store.runs,
            "offset": self._offset,
        }
        draft = self._folder / f"{STATE}.tmp"
        draft.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, self._folder / STATE)


@contextlib.contextmanager
def _replay(folder: Path, uri: str | None, warn: Callable[[str], None]) -> Iterator[_Replay]:
    """Open a replay that no other process makes at the same time."""
    _last_start(folder)  # before the lock file is made: the folder may be none of ours
    with locked(folder / f".{STATE}.lock", timeout_s=1):
        yield _Replay(folder, uri, warn)


def _last_start(folder: Path) -> Event:
    """Return the latest start event of a journal: a resumed run may name another store."""
    start = None
    for event, _ in read_events(folder / JOURNAL):
        if event["event"] == "start":
            start = event
    if start is None:
        raise UserError(
            f"{folder} holds no {JOURNAL} with a started run; give the output folder of "
            f"`fedistill run` or `fedistill sweep`"
        )
    return start


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Return what `mlflow.json` says; None without it, or if it is not ours."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"tracking_uri", "experiment_id", "run_id", "journal_id", "runs", "offset"}
    return state if isinstance(state, dict) and keys <= state.keys() else None


def _reason(error: BaseException) -> str:
    """Say in one line what is behind an error: MLflow wraps a refused connection five times."""
    if isinstance(error, UserError):
        return str(error)
    root = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    text = without_secrets(f"{type(root).__name__}: {root}")
    return textwrap.shorten(text, width=200, placeholder=" ...")
