"""Read what Flower's commands print: log lines, the id of a run, and how it ended.

Flower colours its lines and redraws some of them; `flwr run` exits with 0 also when the run
failed, so that the end of a run must be read from `flwr list`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_UNKNOWN = re.compile(r"Run ID( \d+)? not found")
_STARTED = re.compile(r"Successfully started run (\d+)")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` is completed, failed or stopped; `details` says why."""

    status: str
    details: str
    run_id: str


def clean_line(raw: str) -> str:
    """Strip colour codes, trailing space, and what a carriage return has overwritten."""
    return _ANSI.sub("", raw).rstrip().rpartition("\r")[2]


def log_end(path: Path, lines: int = 20) -> str:
    """Return the last lines of a log file, cleaned; nothing where there is no file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join(clean_line(line) for line in text.splitlines()[-lines:])


def parse_run_id(line: str) -> str:
    """Return the run id that `flwr run` announces in this line, or nothing."""
    found = _STARTED.search(line)
    return found[1] if found else ""


def parse_outcome(answer: str, run_id: str) -> Outcome | None:
    """Read the JSON of `flwr list`; None while the run has not finished."""
    run = _run(answer, run_id)
    state, _, status = str(run.get("status", "")).partition(":")
    if state != "finished":
        return None
    details = str(run.get("status-details") or "")
    return Outcome(status, "" if details == "N/A" else details, run_id)


def parse_status(answer: str, run_id: str) -> str:
    """Read the JSON of `flwr list`: for example "running"; nothing if the run is not in it."""
    return str(_run(answer, run_id).get("status", ""))


def is_unknown(answer: str) -> bool:
    """Whether the JSON of `flwr list` says that there is no such run, rather than nothing."""
    try:
        tree = json.loads(answer)
    except json.JSONDecodeError:
        return False
    if not isinstance(tree, dict):
        return False
    return "runs" in tree or bool(_UNKNOWN.search(str(tree.get("error-message", ""))))


def _run(answer: str, run_id: str) -> dict[str, Any]:
    try:
        runs: list[dict[str, Any]] = json.loads(answer).get("runs", [])
    except (json.JSONDecodeError, AttributeError):
        return {}
    return next((run for run in runs if str(run.get("run-id")) == run_id), {})
