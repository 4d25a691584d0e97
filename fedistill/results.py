"""The output folder of a run: who may write to it, and what result.json says.

config.yaml      the resolved config         partition.json   who holds what
result.json      every number                figures/         pictures
tracking.jsonl   every event                 sets/ipc-10/     a distilled set
"""

import json
import os
import platform
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch

from fedistill import __version__
from fedistill.cores import usable_cores
from fedistill.errors import OutputError, RunError, UserError

RESULT = "result.json"
FAILURE = "failure.json"
CONFIG = "config.yaml"
_FAILURE_MARK = "the run failed: "


def check_free(folder: Path, leftovers: Container[str] = ()) -> None:
    """Refuse an output folder that holds anything.

    Args:
        folder: that is to be written to.
        leftovers: names that do not count.

    Raises:
        OutputError: it does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output folder {folder} is a file; choose another --output")
    try:
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise OutputError(f"the output folder {folder} cannot be read: {error}") from error
    held = [name for name in found if name not in leftovers]
    if held:
        what = "another run" if CONFIG in held else f"other files ({', '.join(held[:3])})"
        raise OutputError(
            f"the output folder {folder} already holds {what}; nothing was overwritten: "
            "choose another --output, or remove the folder"
        )


def claim(folder: Path, config_yaml: str) -> None:
    """Make the output folder this run's own, by writing its config there.

    Raises:
        OutputError: the folder holds something already, or cannot be written.
    """
    check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Exclusive: of two runs that start at once, one gets the folder.
        with (folder / CONFIG).open("x", encoding="utf-8") as file:
            file.write(config_yaml)
    except OSError as error:
        raise OutputError(f"the output folder {folder} cannot be written: {error}") from error


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    write_whole(path, (json.dumps(tree, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader never sees half of it.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave the name without the content
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote."""
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree


def write_failure(folder: Path, error: BaseException) -> None:
    """Leave word of why a run failed, for the command that started it in another process."""
    write_json(folder / FAILURE, _failure(error))


def failure_line(error: BaseException) -> str:
    """Say the same in one line of a log, for a command on another machine."""
    return _FAILURE_MARK + json.dumps(_failure(error))


def failure_from_log(line: str) -> dict[str, Any] | None:
    """Read what `failure_line` wrote, if the line is one.

    At its beginning alone: what devices say stands within a sentence, or indented.
    """
    match = re.match(rf"(?:INFO\s*:\s+)?{_FAILURE_MARK}(?P<text>.*)", line)
    try:
        tree = json.loads(match["text"]) if match else None
    except ValueError:
        return None
    return tree if isinstance(tree, dict) and tree.keys() == _failure(RunError()).keys() else None


def _failure(error: BaseException) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "user_error": isinstance(error, UserError),
        "message": str(error),
    }


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Return what `write_failure` left, if anything."""
    path = folder / FAILURE
    if not path.is_file():
        return None
    return read_json(path)


def hardware() -> dict[str, Any]:
    """Describe the machine that this process runs on."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"fedistill": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "flwr", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
