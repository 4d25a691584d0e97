"""The journal of a run: one JSON line per event, on disk before anyone else hears of it.

A run that ends badly, or that never reached its tracking server, still has every number it
made. `tracking.py` replays the journal into MLflow; the time of each event is kept in it, so
that a replay makes the very points that the run made, and replaying twice adds nothing.
This file knows nothing of MLflow.
"""

import getpass
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedistill.errors import OutputError

JOURNAL = "tracking.jsonl"
MAIN_RUN = "experiment"

Event = dict[str, Any]

# The `@` may be in the password as well: the last one before the next slash counts. In the address
# of a database the password may hold slashes and quotes, but then no `@` (SQLAlchemy's make_url).
_USER_INFO = re.compile(
    r"((?:mssql|mysql|postgres(?:ql)?)(?:\+\w+)?://)[^:/\s]*:[^@\s]*@(?:[^/\s\"]*@)?"
    r"|([A-Za-z][\w+.-]*://)[^/\s\"]*@",
    re.I,
)
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(.*)", re.S)  # with a driver, with options
_SECRET_OPTION = re.compile(
    r"([?&][\w.-]*(?:passw|pwd|token|secret|api_?key)[\w.-]*=)[^&\s\"]*", re.I
)


class Point(NamedTuple):
    """One value of one metric; `time` in milliseconds since 1970."""

    run: str
    name: str
    step: int
    value: float
    time: int


class Journal:
    """Appends the events of a run to `<folder>/tracking.jsonl`; threads may share it.

    Opening an existing journal continues it. `start` on one that was started before means that
    the run resumes: it stays the same run, and points that it already has are not written again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._lock = threading.Lock()
        self._clock = 0
        self._earlier: Counter[tuple[str, str, int, str]] = Counter()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _end_last_line(self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def start(
        self, *, experiment: str, run_name: str, tags: Mapping[str, object], uri: str | None
    ) -> None:
        """Open the run, or resume it.

        Args:
            experiment: MLflow experiment.
            run_name: name of the top-level run.
            tags: also given to every nested run, apart from `role`; they win over the tags
                that say who started the run and from which commit.
            uri: MLflow store; None is a sqlite store in the current folder. A user name or a
                password in it is not written down.
        """
        past = [event for event, _ in read_events(self.path)]
        past_starts = [event for event in past if event["event"] == "start"]
        self._earlier = Counter(_identity(point) for event in past for point in points(event))
        self._append(
            "start",
            journal_id=past_starts[0]["journal_id"] if past_starts else uuid.uuid4().hex,
            resumed=bool(past_starts),
            experiment=experiment,
            name=run_name,
            uri=absolute_uri(uri or default_uri(Path.cwd())),
            tags={**source_tags(), "role": MAIN_RUN, **_texts(tags)},
        )

    def params(self, params: Mapping[str, object], run: str = MAIN_RUN) -> None:
        """Write parameters, nested ones with dotted names; the first value of each stays."""
        self._append("params", run=run, params=flatten(params))

    def metrics(self, metrics: Mapping[str, float], step: int = 0, run: str = MAIN_RUN) -> None:
        """Write one value of each metric at one step; anything that `float` takes is a value."""
        new = {
            name: _json_number(float(value))
            for name, value in metrics.items()
            if self._is_new(run, name, step, float(value))
        }
        if new:
            self._append("metrics", run=run, step=int(step), metrics=new)

    def curve(self, name: str, points: Sequence[tuple[int, float]], run: str = MAIN_RUN) -> None:
        """Write many (step, value) points of one metric as one line.

        A step may occur more than once, for example once per seed.
        """
        new = [
            (int(step), _json_number(float(value)))
            for step, value in points
            if self._is_new(run, name, step, float(value))
        ]
        if new:
            repeats = max(Counter(step for step, _ in new).values())
            self._append("curve", run=run, name=name, points=new, lasts_ms=repeats)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Note a file or a folder inside the output folder, to be stored under `folder`.

        Raises:
            ValueError: the path is outside the output folder.
        """
        # abspath, not resolve: a link inside the folder may point out of it.
        relative = Path(os.path.abspath(path)).relative_to(os.path.abspath(self.folder))
        self._append("artifact", run=MAIN_RUN, path=relative.as_posix(), folder=folder)

    def tags(self, tags: Mapping[str, object], run: str = MAIN_RUN) -> None:
        """Write tags; a later value replaces an earlier one."""
        self._append("tags", run=run, tags=_texts(tags))

    def experiment_tags(self, tags: Mapping[str, object]) -> None:
        """Write tags of the experiment itself, such as its notes and its saved views."""
        self._append("experiment_tags", tags=_texts(tags))

    def experiment_note(self, key: str, line: str) -> None:
        """Write a line into the experiment's notes, in the place of an older one of this key."""
        self._append("experiment_note", key=key, line=line)

    def child(
        self, run: str, name: str, role: str, params: Mapping[str, object] | None = None
    ) -> None:
        """Declare a nested run, such as `client/03`, under the name that MLflow shows."""
        self._append("child", run=run, name=name, role=role, params=flatten(params or {}))

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Say how the run ended; its nested runs end with it."""
        self._append("end", status=status)

    def _is_new(self, run: str, name: str, step: int, value: float) -> bool:
        """Tell whether a resumed run logs a point that it did not log before."""
        key = _identity(Point(run, name, int(step), value, 0))
        with self._lock:
            if self._earlier[key] == 0:
                return True
            self._earlier[key] -= 1
            return False

    def _append(self, kind: str, lasts_ms: int = 1, **fields: object) -> None:
        """Write one line, and reserve `lasts_ms` timestamps for it.

        No two events share a timestamp: MLflow stores equal points of equal time only once.
        """
        with self._lock:
            now = max(time.time_ns() // 1_000_000, self._clock)
            self._clock = now + lasts_ms
            event = {"event": kind, "time": now, **fields}
            line = json.dumps(_without_secrets(event), allow_nan=False)
            try:
                with self.path.open("ab") as file:
                    file.write(line.encode() + b"\n")
            except OSError as error:
                raise _cannot_write(self.path, error) from error


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield the events that begin at a byte offset, each with the offset behind it.

    Lines that a crash cut short are skipped; a last line without its end is left alone, as
    another process may be writing it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event, offset


def points(event: Event) -> list[Point]:
    """List the points of a `metrics` or `curve` event; other events have none."""
    if event["event"] == "metrics":
        values = event["metrics"].items()
        return [
            Point(event["run"], name, event["step"], float(value), event["time"])
            for name, value in values
        ]
    if event["event"] == "curve":
        seen: Counter[int] = Counter()
        found = []
        for step, value in event["points"]:
            when = event["time"] + seen[step]
            found.append(Point(event["run"], event["name"], step, float(value), when))
            seen[step] += 1
        return found
    return []


def flatten(tree: Mapping[str, object]) -> dict[str, str]:
    """Turn a nested mapping into dotted parameters, as MLflow shows and compares them.

    Returns:
        For example {"distill.ipc": "1,10,50", "data.size": "null", "model.0.name": "convnet"}.
    """
    return dict(_leaves("", tree))


def default_uri(folder: Path) -> str:
    """Return the sqlite store of a folder."""
    return f"sqlite:///{Path(os.path.abspath(folder)).as_posix()}/mlflow.db"


def absolute_uri(uri: str) -> str:
    """Make the path of a sqlite store absolute; other stores stay as they are."""
    found = _SQLITE.fullmatch(uri)
    return f"{found[1]}{os.path.abspath(found[2])}{found[3]}" if found else uri


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute file of a sqlite store, None for other stores."""
    found = _SQLITE.fullmatch(uri)
    return Path(os.path.abspath(found[2])) if found else None


def without_secrets(text: str) -> str:
    """Remove user names, passwords and tokens from the URIs in a text."""
    return _SECRET_OPTION.sub(r"\1", _USER_INFO.sub(r"\1\2", text))


def _without_secrets(value: Any) -> Any:
    """Remove them from every text of an event; in its JSON a quote would end in a backslash."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    return value


def source_tags() -> dict[str, str]:
    """Say who runs what: user, program, and the commit of this code where git knows it.

    The tags that MLflow's fluent interface sets and its client does not, plus `git_dirty`.
    """
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0]).name}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (OSError, KeyError):  # a container may run under a uid without a name
        tags["mlflow.user"] = "unknown"
    if commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        tags["git_dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def _git(*args: str) -> str:
    """Ask git about the checkout that holds this code; empty where there is none."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _leaves(path: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the text of every leaf below a value."""
    if isinstance(value, list | tuple) and not any(isinstance(item, Mapping) for item in value):
        yield path, ",".join(map(_text, value)) if value else "[]"
        return
    children = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    if isinstance(children, Mapping) and (children or not path):
        for key, child in children.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), child)
    else:
        yield path, _text(children)


def _text(value: object) -> str:
    """Write a value as YAML would, so that it reads like the config."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _texts(tags: Mapping[str, object]) -> dict[str, str]:
    return {key: _text(value) for key, value in tags.items()}


def _json_number(value: float) -> float | str:
    """JSON has no word for NaN and infinity; `float` reads these strings back."""
    return value if math.isfinite(value) else str(value)


def _identity(point: Point) -> tuple[str, str, int, str]:
    """What makes two points the same, whenever they were logged; NaN equals NaN here."""
    return point.run, point.name, point.step, str(point.value)


def _end_last_line(path: Path) -> None:
    """Close a line that a crash cut short, so that the next event does not join it."""
    if path.exists() and path.stat().st_size > 0:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror}); choose another output folder or free space"
    )
