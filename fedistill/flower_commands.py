"""Flower's commands against one SuperLink: submit a run, follow its log, ask how it ended.

Flower is used through its commands only: they are its stable interface.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedistill.errors import RunError
from fedistill.flower_output import (
    Outcome,
    clean_line,
    is_unknown,
    parse_outcome,
    parse_run_id,
    parse_status,
)

CLI_TIMEOUT_S = 30.0
_LAST_LINES = 20
_AGAIN_S = 0.5  # between two questions about a run


@dataclass(frozen=True)
class FlowerCommands:
    """One SuperLink, by the name that FLWR_HOME's config.toml gives it.

    Attributes:
        superlink: its name.
        cwd: where the commands run.
        env: their environment.
        check: called while waiting; raises when there is nothing to wait for any more.
        patience_s: how long a SuperLink may be away.
        again: what to do when it was away for longer.
    """

    superlink: str
    cwd: Path
    env: Mapping[str, str]
    check: Callable[[], None] = lambda: None
    patience_s: float = 60.0
    again: str = "repeat the command"

    def submit(
        self,
        app: Path,
        options: list[str],
        on_line: Callable[[str], None],
        on_run: Callable[[str], None] = lambda run_id: None,
    ) -> Outcome:
        """Submit a run, pass its log on until it ends, and tell how it ended.

        Args:
            app: folder of the Flower app.
            options: of `flwr run`.
            on_line: gets every line of the log, without colour codes.
            on_run: gets the id of the run, once it has one.

        Raises:
            RunError: Flower refused the run.
            KeyboardInterrupt: Ctrl-C; the run is stopped first.
        """
        arguments = ["run", str(app), self.superlink, "--stream", *options]
        log = _Log(on_line)
        run_id, lines = self._stream(arguments, log.line, on_run)
        if not run_id:
            self.check()
            raise RunError("Flower refused the run:\n" + "\n".join(lines))
        try:
            return self._outcome(run_id, log)
        except KeyboardInterrupt:
            self.stop(run_id)
            raise

    def follow(self, run_id: str, on_line: Callable[[str], None]) -> Outcome:
        """Pass the log of a run on, from its beginning to its end, and tell how it ended."""
        log = _Log(on_line)
        self._log(run_id, log.line)
        return self._outcome(run_id, log)

    def status(self, run_id: str) -> str:
        """Return what Flower says of a run, for example "running"; nothing if it knows none.

        Raises:
            RunError: no answer comes for `patience_s`.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            self.check()
            answer = self._list(run_id)
            found = parse_status(answer, run_id)
            if found or is_unknown(answer):
                return found
            if time.monotonic() > deadline:
                raise RunError(
                    f"Flower does not tell whether run {run_id} goes on; it says: "
                    f"{answer or 'nothing'}; {self.again} when the SuperLink is back"
                )
            time.sleep(_AGAIN_S)

    def stop(self, run_id: str) -> None:
        """Stop a run."""
        self._flwr("stop", run_id, self.superlink)

    def _list(self, run_id: str) -> str:
        return self._flwr("list", self.superlink, "--run-id", run_id, "--format", "json")

    def _log(self, run_id: str, on_line: Callable[[str], None]) -> None:
        self._stream(["log", run_id, self.superlink, "--stream"], on_line, run_id=run_id)

    def _stream(
        self,
        arguments: list[str],
        on_line: Callable[[str], None],
        on_run: Callable[[str], None] = lambda run_id: None,
        run_id: str = "",
    ) -> tuple[str, list[str]]:
        """Pass on what a command prints; return the id of the run, and the last lines."""
        lines: list[str] = []
        with subprocess.Popen(
            [command("flwr"), *arguments], stderr=subprocess.STDOUT, **self._options
        ) as process:
            try:
                for raw in process.stdout or ():
                    line = clean_line(raw)
                    lines = [*lines[1 - _LAST_LINES :], line]
                    if not run_id and (found := parse_run_id(line)):
                        run_id = found
                        on_run(run_id)
                    on_line(line)
            except BaseException:
                process.kill()
                if run_id:
                    self.stop(run_id)
                raise
        return run_id, lines

    def _outcome(self, run_id: str, log: "_Log") -> Outcome:
        """Ask how a run ended: `flwr run` exits with 0 also when the run failed.

        The log ends before the run does when the SuperLink goes away, and when it comes back
        Flower begins again with the first line.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            self.check()
            answer = self._list(run_id)
            outcome = parse_outcome(answer, run_id)
            if outcome is not None:
                return outcome
            if parse_status(answer, run_id):
                self._log(run_id, log.new_line)
                deadline = time.monotonic() + self.patience_s
            elif time.monotonic() > deadline:
                raise RunError(
                    f"Flower does not tell how run {run_id} ended; it says: {answer or 'nothing'}; "
                    f"{self.again} when the SuperLink is back"
                )
            time.sleep(_AGAIN_S)

    def _flwr(self, *arguments: str) -> str:
        """Run a short `flwr` command and return what it prints; nothing when it hangs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            answer: str = subprocess.run(
                [command("flwr"), *arguments],
                stderr=subprocess.DEVNULL,
                timeout=CLI_TIMEOUT_S,
                check=False,
                **self._options,
            ).stdout
            return answer
        return ""

    @property
    def _options(self) -> dict[str, Any]:
        """What all commands are started with."""
        return {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "encoding": "utf-8",
            "errors": "replace",
            "cwd": self.cwd,
            "env": dict(self.env),
            "start_new_session": True,  # Ctrl-C is ours to handle
        }


class _Log:
    """A log that may be read again from its beginning."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._seen = set[str]()

    def line(self, line: str) -> None:
        """Take a line that is read for the first time."""
        self._seen.add(line)
        self._on_line(line)

    def new_line(self, line: str) -> None:
        """Take a line that may have been read before."""
        if line not in self._seen:
            self.line(line)


def command(name: str) -> str:
    """Return the path of one of Flower's commands in this environment.

    Raises:
        RunError: it is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise RunError(f"{path} is missing; install flwr[simulation] into this environment")
    return str(path)
