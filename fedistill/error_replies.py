"""What a client says when it fails: enough to mend it, and nothing of its files.

A simulation's clients tell all, traceback and messages. A device's own files may stand in what
libraries say of them, so it sends our own messages, for others their kind alone, and where in the
code it happened, but not where that is installed; the rest is in the device's own log.
"""

import logging
import os
import sys
import traceback
from pathlib import Path

from fedistill import processes
from fedistill.errors import DataError, FedistillError
from fedistill.records import plain

_LONGEST = 4000
_LONGEST_LINE = 500

_log = logging.getLogger(__name__)


def reason_of(error: Exception) -> str:
    """Return the reason of an error reply.

    The first line says what is wrong, in short; so does the last, below the traceback.
    """
    trusted = processes.MARK in os.environ
    short = plain(f"{type(error).__name__}: {_words(error, trusted)}", _LONGEST_LINE)
    if trusted:
        whole = "".join(traceback.format_exception(error))
        return f"{short}\n{whole[-(_LONGEST - len(short)) :]}"
    _log.error("a message could not be answered", exc_info=error)
    frames = "".join(
        f'  File "{_below_imports(frame.filename)}", line {frame.lineno}, in {frame.name}\n'
        for frame in traceback.extract_tb(error.__traceback__)
    )
    return f"{short}\n{frames[-(_LONGEST - 2 * len(short)) :]}{short}"


def _words(error: Exception, trusted: bool) -> str:
    if isinstance(error, DataError) and not trusted:
        return error.told
    if trusted or isinstance(error, FedistillError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the device's own log says more"


def _below_imports(filename: str) -> str:
    """Return the part of a path below the folder that Python imports it from, or its name."""
    path = Path(filename)
    folders = [folder for folder in sys.path if folder and path.is_relative_to(folder)]
    return str(path.relative_to(max(folders, key=len))) if folders else path.name
