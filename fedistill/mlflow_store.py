"""The runs of one journal in one MLflow store; the only file that imports mlflow.

`Store` turns the events of a journal into calls of MLflow's client. It looks up first what the
store has of the journal, by a tag that its runs carry, so that nothing is stored twice.

mlflow takes seconds to import and talks a lot: it is imported when a `Store` is made, not
before, and without its telemetry, its messages and its patience.
"""

import contextlib
import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedistill import mlflow_views
from fedistill.errors import UserError
from fedistill.journal import MAIN_RUN, Event, points, sqlite_path

_JOURNAL_TAG = "fedistill.journal_id"
_RUN_TAG = "fedistill.run"

# Limits of MLflow 3.17 (mlflow/utils/validation.py).
_METRICS_A_CALL, _PARAMS_A_CALL = 1000, 100
_KEY_LENGTH, _PARAM_LENGTH, _TAG_LENGTH = 250, 6000, 8000

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


class Store:
    """The runs of one journal in one MLflow store; every call of MLflow is made here."""

    def __init__(self, uri: str, start: Event, folder: Path, warn: Callable[[str], None]) -> None:
        self._mlflow = _import_mlflow()
        self._folder = folder
        self._warn = warn
        self._journal_id = start["journal_id"]
        self._tags: dict[str, str] = start["tags"]
        self._path = sqlite_path(uri)
        self._client, self.experiment_id = self._open(uri, start["experiment"])
        self.runs: dict[str, str] = {}
        self._names: dict[str, str] = {}
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
        elif self._names.get(run) != event["name"]:
            self._client.update_run(self.runs[run], name=event["name"])
        self._names[run] = event["name"]
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

    def _on_experiment_note(self, event: Event) -> None:
        line = event["line"].replace(mlflow_views.EXPERIMENT_ID, self.experiment_id)
        with self._alone():  # others have lines of their own in the same notes
            tags = self._client.get_experiment(self.experiment_id).tags
            text = mlflow_views.with_note(tags.get(mlflow_views.NOTE_TAG, ""), event["key"], line)
            self._client.set_experiment_tag(self.experiment_id, mlflow_views.NOTE_TAG, text)

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
                self._names[run] = found.info.run_name
                self._params[run] |= set(found.data.params)
            token = page.token
            if not token:
                return

    def _open(self, uri: str, experiment: str) -> tuple[Any, str]:
        """Connect, and make the database and the experiment where they are missing."""
        if self._path is None:
            client = self._mlflow.MlflowClient(tracking_uri=uri)
            return client, self._experiment(client, experiment, None)
        folder = self._path.parent
        artifacts = folder / "mlartifacts" / (re.sub(r"[^\w.-]", "_", experiment) or "_")
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone():  # of two processes that create the same database, one would crash
            client = self._mlflow.MlflowClient(tracking_uri=uri)
            return client, self._experiment(client, experiment, str(artifacts))

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold a store that is a file for this process; a server has no lock to offer."""
        if self._path is None:
            return contextlib.nullcontext()
        return locked(self._path.with_name(f"{self._path.name}.lock"), timeout_s=60)

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
def locked(path: Path, timeout_s: float) -> Iterator[None]:
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


def fetch(uri: str, tags: Mapping[str, str], folder: Path, last: str) -> tuple[str, str] | None:
    """Copy the artefacts of the newest top-level run that carries some tags, one of them last.

    Returns:
        The ids of its experiment and of itself; None: there is no such run.
    """
    mlflow = _import_mlflow()
    client = mlflow.MlflowClient(uri)
    wanted = {**tags, _RUN_TAG: MAIN_RUN}
    filters = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, filters, max_results=1)
    for run in runs:
        paths = [item.path for item in client.list_artifacts(run.info.run_id)]
        for path in sorted(paths, key=lambda path: (path == last, path)):
            client.download_artifacts(run.info.run_id, path, str(folder))
        return str(run.info.experiment_id), str(run.info.run_id)
    return None


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
