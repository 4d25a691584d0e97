"""Progress of long work, told across processes through one append-only file.

The environment variable `FEDISTILL_PROGRESS` names a file of JSON lines. Whoever works appends
an event with `Progress`; `display.py` shows them. A simulation's server and clients inherit the
variable; where it is unset, reports go nowhere. Flower's own log arrives seconds late. One event
is one `write` of less than 4096 bytes to a file opened for appending, so that lines of several
processes never mix.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

ENV = "FEDISTILL_PROGRESS"
MARK = "progress: "  # begins an event in a log that stands in for the file (`lines`)
WRITE_EVERY_S = 0.2
LOG_EVERY_S = 5.0
# Characters; JSON makes at most 12 bytes of one, and a line must stay below 4096 bytes.
MAX_NAME = 40
MAX_NOTE = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """`who` has done `done` of `total` steps of `stage`, at `at` seconds since the epoch."""

    who: str
    stage: str
    done: int
    total: int
    note: str
    at: float

    @property
    def finished(self) -> bool:
        """Whether the stage is complete."""
        return self.done >= self.total

    def to_line(self) -> bytes:
        """Encode as one line of JSON."""
        return (json.dumps(asdict(self)) + "\n").encode("ascii")

    @classmethod
    def from_line(cls, line: bytes) -> "Event | None":
        """Decode; None for a line that is broken, which a killed writer may leave."""
        try:
            event = cls(**json.loads(line))
            return cls(
                str(event.who),
                str(event.stage),
                int(event.done),
                int(event.total),
                str(event.note),
                float(event.at),
            )
        except (ValueError, TypeError):
            return None


def to_log(write: Callable[[str], None]) -> Callable[[Event], None]:
    """Make an `on_event` that writes events to a log, few of them: where no file is shared.

    Args:
        write: takes one line.
    """
    last = dict[str, tuple[str, float]]()

    def on_event(event: Event) -> None:
        stage, at = last.get(event.who, ("", 0.0))
        if event.stage != stage or event.finished or event.at - at >= LOG_EVERY_S:
            last[event.who] = event.stage, event.at
            write(MARK + event.to_line().decode().strip())

    return on_event


def from_log(line: str) -> bytes | None:
    """Return the line of a progress file that a line of a log holds, if it does.

    At its beginning alone: what devices say stands within a sentence, or indented.
    """
    match = re.match(rf"(?:INFO\s*:\s+)?{MARK}(?P<text>.*)", line)
    event = Event.from_line(match["text"].encode()) if match else None
    return None if event is None else event.to_line()


class Progress:
    """Reports the progress of one worker; cheap enough to be called at every step.

    Writes the first and the last event of every stage, and about five a second in between.
    """

    def __init__(
        self,
        who: str,
        path: Path | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """Choose where reports go.

        Args:
            who: "server" or "client 3".
            path: the file to append to; left out, `FEDISTILL_PROGRESS` names it.
            on_event: called with every event that is not held back.
        """
        named = os.environ.get(ENV)
        self._who = who[:MAX_NAME]
        self._path = path or (Path(named) if named else None)
        self._on_event = on_event
        self._stage: str | None = None
        self._next = 0.0  # on the monotonic clock
        self._held: Event | None = None

    def report(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` steps of a stage are done; never fails.

        Args:
            stage: what is being done, for example "squeeze".
            done: counts from 0.
            total: when `done` reaches it, the stage is complete.
            note: a few words, for example "loss 1.23".
        """
        if self._path is None and self._on_event is None:
            return
        stage, note = stage[:MAX_NAME], note[:MAX_NOTE]
        event = Event(self._who, stage, int(done), int(total), note, time.time())
        new_stage = stage != self._stage
        if new_stage and self._held is not None:
            self._emit(self._held)  # the last word on the stage before, however early it ended
        if new_stage or event.finished or time.monotonic() >= self._next:
            self._stage = stage
            self._emit(event)
        else:
            self._held = event

    def track(self, stage: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
        """Yield the items and report after each.

        Raises:
            TypeError: `total` is left out and the items have no length.
        """
        if total is None:
            if not isinstance(items, Sized):
                raise TypeError(f"{type(items).__name__} has no length; pass `total`")
            total = len(items)
        self.report(stage, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            self.report(stage, done, total)

    def _emit(self, event: Event) -> None:
        self._held = None
        self._next = time.monotonic() + WRITE_EVERY_S
        if self._on_event is not None:
            self._on_event(event)
        if self._path is None:
            return
        # A full disk or a removed folder must not end hours of training.
        with contextlib.suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, event.to_line())
            finally:
                os.close(file)
