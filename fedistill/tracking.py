"""Tracking in MLflow, by replaying the journal of a run into a store.

`MlflowSink` follows the journal while the run goes on, `deliver` sends afterwards what a store
lacks; both are the same replay. It is idempotent: the journal keeps the time of every event, so
a point that comes twice is stored once; parameters are sent once; artefacts go by name; and the
runs are found again by the id of the journal, which they carry as a tag.

A run never fails because of MLflow: after the first error the sink warns once and is silent.
The only file that imports mlflow, and only when something is sent.
"""

import contextlib
import json
import logging
import os
import re
import shlex
import textwrap
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fedistill.errors import UserError
from fedistill.journal import (
    JOURNAL,
    MAIN_RUN,
    Event,
    Journal,
    absolute_uri,
    default_uri,
    flatten,
    points,
    read_events,
    source_tags,
    sqlite_path,
    without_secrets,
)

__all__ = [
    "Journal",
    "MlflowSink",
    "StoredRun",
    "default_uri",
    "deliver",
    "flatten",
    "source_tags",
    "stored_run",
    "ui_command",
    "without_secrets",
]

STATE = "mlflow.json"
_JOURNAL_TAG = "fedistill.journal_id"
_RUN_TAG = "fedistill.run"

# Limits of MLflow 3.17 (mlflow/utils/validation.py).
_METRICS_A_CALL, _PARAMS_A_CALL = 1000, 100
_KEY_LENGTH, _PARAM_LENGTH, _TAG_LENGTH = 250, 6000, 8000
_EVENTS_A_BATCH = 500
_POLL_S = 0.5

# Set before mlflow is imported, unless the user has set them. With MLflow's own 7 retries a
# server that is down costs 4 minutes a call. DO_NOT_TRACK takes the word, not 1.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}

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
        UserError: the folder holds no journal, another process is sending it, or the store
            cannot be reached or refuses it.
    """
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


def stored_run(folder: Path) -> StoredRun | None:
    """Return where the run of an output folder is stored, None if it is not, or not yet."""
    state = _read_state(folder)
    if state is None:
        return None
    return StoredRun(state["tracking_uri"], state["experiment_id"], state["run_id"])


def ui_command(uri: str, experiment_id: str | None = None) -> str:
    """Return the line that opens MLflow's pages: a command, or the address of a server."""
    # Without workflowType an experiment opens on the empty page for language models.
    page = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    link = page if experiment_id is not None else ""
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
        self._store = _Store(address, start, folder, warn)
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


class _Store:
    """The runs of one journal in one MLflow store; every call of MLflow is made here."""

    def __init__(self, uri: str, start: Event, folder: Path, warn: Callable[[str], None]) -> None:
        self._mlflow = _import_mlflow()
        self._folder = folder
        self._warn = warn
        self._journal_id = start["journal_id"]
        self._tags: dict[str, str] = start["tags"]
        self._client, self.experiment_id = self._open(uri, start["experiment"])
        self.runs: dict[str, str] = {}
        self._params: defaultdict[str, set[str]] = defaultdict(set)
        self._points: defaultdict[str, list[Any]] = defaultdict(list)
        self._find_runs()

    def send(self, events: list[Event]) -> None:
        """Send events in their order; consecutive points go together."""
        for event in events:
            # An event that this version does not know is passed over.
            action = getattr(self, f"_on_{event['event']}", None)
            if action is not None:
                action(event)
            for point in points(event):
                # MLflow would turn infinity into 1.8e308, and its charts with it.
                if abs(point.value) != float("inf"):
                    metric = self._mlflow.entities.Metric(
                        _key(point.name), point.value, point.time, point.step
                    )
                    self._points[self._run_id(event)].append(metric)
        self._send_points()

    def _on_start(self, event: Event) -> None:
        if MAIN_RUN not in self.runs:
            self._create(MAIN_RUN, event["name"], event["tags"], event["time"])
        elif event["resumed"]:
            self._client.update_run(self.runs[MAIN_RUN], status="RUNNING")
            self._set_tags(MAIN_RUN, {**event["tags"], "resumed": "true"})

    def _on_child(self, event: Event) -> None:
        run = event["run"]
        if run not in self.runs:
            self._create(run, event["name"], {"role": event["role"]}, event["time"])
        self._on_params(event)

    def _on_params(self, event: Event) -> None:
        # A second value makes MLflow raise; a resumed run logs its parameters again.
        run_id, known = self._run_id(event), self._params[event["run"]]
        params = {_key(name): value[:_PARAM_LENGTH] for name, value in event["params"].items()}
        new = [(name, value) for name, value in params.items() if name not in known]
        for some in _chunks(new, _PARAMS_A_CALL):
            self._client.log_batch(
                run_id, params=[self._mlflow.entities.Param(*item) for item in some]
            )
            known.update(name for name, _ in some)

    def _on_tags(self, event: Event) -> None:
        self._run_id(event)
        self._set_tags(event["run"], event["tags"])

    def _on_experiment_tags(self, event: Event) -> None:
        for name, value in event["tags"].items():
            self._client.set_experiment_tag(self.experiment_id, name, value)

    def _on_artifact(self, event: Event) -> None:
        path, run_id = self._folder / event["path"], self._run_id(event)
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), event["folder"] or None)
        elif path.exists():
            self._client.log_artifact(run_id, str(path), event["folder"] or None)
        else:
            self._warn(f"{path} is no longer there, so MLflow does not get it")

    def _on_end(self, event: Event) -> None:
        self._send_points()
        for run_id in reversed(self.runs.values()):  # the run itself is the first: it ends last
            self._client.set_terminated(run_id, event["status"], event["time"])

    def _run_id(self, event: Event) -> str:
        """Return the id of an event's run; one that was not declared gets its key as name."""
        run = event["run"]
        return self.runs.get(run) or self._create(run, run, {}, event["time"])

    def _create(self, run: str, name: str, tags: Mapping[str, str], time: int) -> str:
        own = {_JOURNAL_TAG: self._journal_id, _RUN_TAG: run}
        if run != MAIN_RUN:
            own |= {"mlflow.parentRunId": self.runs[MAIN_RUN]}
        created = self._client.create_run(
            self.experiment_id, time, _tags({**self._tags, **tags, **own}), name
        )
        self.runs[run] = str(created.info.run_id)
        return self.runs[run]

    def _set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        entities = [self._mlflow.entities.RunTag(*item) for item in _tags(tags).items()]
        for some in _chunks(entities, _PARAMS_A_CALL):
            self._client.log_batch(self.runs[run], tags=some)

    def _send_points(self) -> None:
        for run_id, metrics in self._points.items():
            for some in _chunks(metrics, _METRICS_A_CALL):
                self._client.log_batch(run_id, metrics=some)
        self._points.clear()

    def _find_runs(self) -> None:
        """Look up the runs that an earlier replay made, and their parameters."""
        query, token = f"tags.`{_JOURNAL_TAG}` = '{self._journal_id}'", None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], query, order_by=["start_time ASC"], page_token=token
            )
            for found in page:
                run = found.data.tags[_RUN_TAG]
                self.runs.setdefault(run, found.info.run_id)
                self._params[run] |= set(found.data.params)
            token = page.token
            if not token:
                return

    def _open(self, uri: str, experiment: str) -> tuple[Any, str]:
        """Connect, and make the database and the experiment where they are missing."""
        path = sqlite_path(uri)
        if path is None:
            client = self._mlflow.MlflowClient(tracking_uri=uri)
            return client, self._experiment(client, experiment, None)
        artifacts = path.parent / "mlartifacts" / (re.sub(r"[^\w.-]", "_", experiment) or "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of two processes that create the same database, one would crash.
        with _locked(path.with_name(f"{path.name}.lock"), timeout_s=60):
            client = self._mlflow.MlflowClient(tracking_uri=uri)
            return client, self._experiment(client, experiment, str(artifacts))

    def _experiment(self, client: Any, name: str, artifacts: str | None) -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=artifacts))
            except self._mlflow.MlflowException:
                found = client.get_experiment_by_name(name)  # another client was faster
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment '{name}' was deleted; restore it with `mlflow experiments "
                f"restore -x {found.experiment_id}`, or set `tracking.experiment` to another name"
            )
        return str(found.experiment_id)


@contextlib.contextmanager
def _replay(folder: Path, uri: str | None, warn: Callable[[str], None]) -> Iterator[_Replay]:
    """Open a replay that no other process makes at the same time."""
    _last_start(folder)  # before the lock file is made: the folder may be none of ours
    with _locked(folder / f".{STATE}.lock", timeout_s=1):
        yield _Replay(folder, uri, warn)


@contextlib.contextmanager
def _locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold a lock between processes; it is free again when its process dies."""
    import filelock

    try:
        with filelock.FileLock(path, timeout=timeout_s):
            yield
    except filelock.Timeout:
        raise UserError(
            f"another process has held {path} for {timeout_s:g} s: it is sending to MLflow; wait "
            f"for it to finish"
        ) from None


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


def _import_mlflow() -> Any:
    """Import mlflow without its telemetry, its messages and its patience."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # MLflow 3.17 uses a loader that SQLAlchemy 2.1 deprecates.
    warnings.filterwarnings("ignore", message="The ``noload`` loader", module=r"mlflow\.")
    try:
        import mlflow
    except ImportError as error:
        raise UserError(
            f"mlflow cannot be imported ({error}); install it: pip install mlflow"
        ) from error
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    return mlflow


def _reason(error: BaseException) -> str:
    """Say in one line what is behind an error: MLflow wraps a refused connection five times."""
    if isinstance(error, UserError):
        return str(error)
    root = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    text = without_secrets(f"{type(root).__name__}: {root}")
    return textwrap.shorten(text, width=200, placeholder=" ...")


def _key(name: str) -> str:
    """Turn a name into one that MLflow takes: it must also be a normal relative path."""
    allowed = re.sub(r"[^\w\-. :/]", "_", name)
    parts = [part for part in allowed.split("/") if part not in ("", ".", "..")]
    return "/".join(parts).lstrip(".")[:_KEY_LENGTH] or "_"


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_key(name): value[:_TAG_LENGTH] for name, value in tags.items()}


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
