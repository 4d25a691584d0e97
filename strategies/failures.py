"""Who takes no part in something any more, and why.

A reason may be a traceback that came over the network: people are shown its last line, and the log
gets all of it.
"""

import textwrap
from collections.abc import Mapping
from logging import WARNING

from flwr.common import log


class Failures(dict[int, str]):
    """Why clients are left out of something, by partition id; the first reason counts.

    Args:
        consequence: what the log says of a client that has failed, for example "labels no more".
    """

    def __init__(self, consequence: str) -> None:
        super().__init__()
        self._consequence = consequence

    def note(self, client: int, reason: str) -> bool:
        """Note that a client has failed, and log it; return whether that is news."""
        if client in self:
            return False
        self[client] = reason
        # Indented: the lines of a traceback then belong to this message for every reader.
        text = textwrap.indent(reason, "    ")
        log(WARNING, "client %s failed and %s:\n%s", client, self._consequence, text)
        return True


def last_lines(reasons: Mapping[int, str]) -> str:
    """Say in one line why clients have failed: of a traceback the last line."""
    return "; ".join(f"client {client}: {last_line(why)}" for client, why in reasons.items())


def last_line(reason: str) -> str:
    """Return the last line of a reason: of a traceback what was raised."""
    return reason.strip().splitlines()[-1]
