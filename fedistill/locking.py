"""One process at a time for a folder, and a word to the others about who that is."""

import contextlib
import getpass
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fedistill.errors import OutputError

_LOCK, _OWNER = ".fedistill.lock", ".fedistill-owner.json"
FILES = (_LOCK, _OWNER)  # what may be left in a folder that was held


@contextlib.contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder for one process; it is free again when that dies.

    Args:
        folder: is made where it is not there.
        what: for the message, for example "the artefact store".

    Raises:
        OutputError: another process holds it; the message says which process.
    """
    import filelock

    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise OutputError(_in_use(folder, what)) from None
    except OSError as error:
        raise OutputError(f"{what} {folder} cannot be written: {error}") from error
    owner = folder / _OWNER
    try:
        owner.write_text(json.dumps(_myself()), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _myself() -> dict[str, str | int]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run under a uid without a name
        user = "unknown"
    return {
        "pid": os.getpid(),
        "user": user,
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _in_use(folder: Path, what: str) -> str:
    owner = "its process is not known yet"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it has only just begun
        found = json.loads((folder / _OWNER).read_text(encoding="utf-8"))
        if (found["pid"], found["host"]) == (os.getpid(), socket.gethostname()):
            return (
                f"{what} {folder} is in use already, for something else of this very command; "
                "choose a folder of its own for each; nothing was changed"
            )
        owner = (
            f"process {found['pid']} of {found['user']} on {found['host']} since "
            f"{found['since']}: {found['command']}"
        )
    return (
        f"{what} {folder} is in use by another process ({owner}); wait for it to end, stop it, or "
        "choose another folder; nothing was changed"
    )
