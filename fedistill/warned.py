"""Catch what our modules warn of while something is done, for those who do not see its log."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected(*, alone: bool = False) -> Iterator[list[str]]:
    """Collect the warnings of this thread, each of them once.

    Args:
        alone: whether nobody else that listens to our logger hears of them; for a process
            whose other threads do not come here meanwhile.
    """
    found: list[str] = []
    thread = threading.get_ident()

    def note(record: logging.LogRecord) -> None:
        if record.thread == thread and record.getMessage() not in found:
            found.append(record.getMessage())

    handler = logging.Handler(logging.WARNING)
    handler.emit = note  # type: ignore[method-assign]
    logger = logging.getLogger("fedistill")
    before = logger.handlers
    if alone:
        logger.handlers = []
    # Other threads may come and go meanwhile, each with a handler of its own.
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        if alone:
            logger.handlers = before
