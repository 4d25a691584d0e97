"""Show the progress of a run to the user while it goes on.

`ProgressDisplay` tails the file that every process appends to with `Progress`: on a terminal it
draws a live table with an ETA for each worker, elsewhere it prints plain lines, few of them.
"""

import contextlib
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedistill.progress import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

READ_EVERY_S = 0.2
PLAIN_EVERY_S = 10.0
FEW = 8  # so many clients always get a line each


class _Tail:
    """Reads what was appended to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def events(self) -> list[Event]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except OSError:  # nobody has written yet
            return []
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [event for line in lines if (event := Event.from_line(line)) is not None]


@dataclass
class _Worker:
    """The last event of one worker, and the first of its stage (for the ETA)."""

    first: Event
    last: Event
    printed: float = 0.0

    def eta(self, now: float) -> str:
        steps = self.last.done - self.first.done
        if self.last.finished or steps <= 0:
            return ""
        pace = (self.last.at - self.first.at) / steps
        left = pace * (self.last.total - self.last.done) - (now - self.last.at)
        return format_seconds(max(left, 0.0))

    def percent(self) -> int:
        return min(100 * self.last.done // max(self.last.total, 1), 100)


class ProgressDisplay:
    """Shows the progress file: a live table on a terminal, plain lines elsewhere."""

    def __init__(
        self,
        path: Path,
        console: "Console | None" = None,
        *,
        clients: int = 0,
        live: bool | None = None,
    ) -> None:
        """Prepare a display of `path`, which need not exist yet.

        Args:
            path: the progress file.
            console: where to draw; left out, standard output.
            clients: how many are expected, to count those that wait for their turn.
            live: whether to draw a live table; left out, only on a real terminal.
        """
        from rich.console import Console

        self._console = console or Console()
        self._clients = clients
        if live is None:
            # Not `is_terminal`: FORCE_COLOR makes that true for the log files of CI, too.
            live = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._is_live = live
        self._tail = _Tail(path)
        self._workers: dict[str, _Worker] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._is_live:
            from rich.live import Live

            self._resources.enter_context(
                Live(get_renderable=self.table, console=self._console, refresh_per_second=4)
            )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._update()
        self._resources.close()

    def log(self, line: str) -> None:
        """Print a line above the live table."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> "Table":
        """Draw the state: busy workers, then a summary of those that do not fit."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        now = time.time()
        with self._lock:
            shown, summary = self._choose(max(self._console.height - 6, 4))
            for worker in shown:
                last = worker.last
                table.add_row(
                    Text(last.who, style="bold"),
                    Text(last.stage, style="cyan"),
                    ProgressBar(total=max(last.total, 1), completed=last.done, width=24),
                    Text(f"{worker.percent()}%", justify="right"),
                    Text("done" if last.finished else worker.eta(now), justify="right"),
                    Text(last.note, style="dim", overflow="ellipsis", no_wrap=True),
                )
        outer = Table.grid()
        outer.add_row(table)
        if summary:
            outer.add_row(Text(summary, style="dim"))
        return outer

    def _follow(self) -> None:
        while not self._stop.wait(READ_EVERY_S):
            self._update()

    def _update(self) -> None:
        for event in self._tail.events():
            with self._lock:
                worker = self._workers.get(event.who)
                changed = worker is None or worker.last.stage != event.stage
                if worker is None or changed:
                    worker = self._workers[event.who] = _Worker(event, event)
                elif event.done < worker.last.done:  # the same stage once more
                    worker.first = event
                worker.last = event
            if not self._is_live:
                self._print(worker, changed)

    def _print(self, worker: _Worker, changed: bool) -> None:
        last = worker.last
        if changed or last.finished or last.at - worker.printed >= PLAIN_EVERY_S:
            worker.printed = last.at
            eta = worker.eta(last.at)
            parts = [last.who, last.stage, f"{worker.percent()}%", f"({last.done}/{last.total})"]
            self.log("  ".join([*parts, *([f"ETA {eta}"] if eta else []), last.note]).rstrip())

    def _choose(self, room: int) -> tuple[list[_Worker], str]:
        """Pick the workers that get a line, and sum up the others.

        Everyone while they are few; else the server, and as many busy clients as there is room.
        """
        ordered = sorted(self._workers.values(), key=lambda worker: _order(worker.last.who))
        clients = [worker for worker in ordered if _is_client(worker)]
        shown = clients
        if len(clients) > FEW:
            shown = [worker for worker in clients if not worker.last.finished][:room]
        counts = Counter(
            f"{'done with' if worker.last.finished else 'busy with'} {worker.last.stage}"
            for worker in clients
            if worker not in shown
        )
        counts["waiting"] = self._clients - len(clients)
        summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count > 0)
        others = [worker for worker in ordered if not _is_client(worker)]
        return shown + others, f"clients: {summary}" if summary else ""


def format_seconds(seconds: float) -> str:
    """Write a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_client(worker: _Worker) -> bool:
    return worker.last.who.startswith("client")


def _order(who: str) -> tuple[bool, list[int | str]]:
    """Clients by number, so that 10 comes after 9; everyone else below them."""
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", who)]
    return not who.startswith("client"), parts
