"""Fetch no more of a reply than it can have reason to hold.

A reply lies on the SuperLink in pieces of some megabytes, and Flower fetches all of them before we
see one: a hostile device could fill the server's memory. Beyond a limit no further piece is found
here, and Flower turns the reply into an error. What stands here is no public API of Flower; with a
grid that works in another way nothing is limited, and replies are weighed when they are there.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.proto.message_pb2 import PullObjectResponse
from flwr.serverapp import Grid

_FRAME = 1_000_000  # bytes of a message beside its arrays: headers of pieces, names


class Limited:
    """A client of Flower's Runtime API that finds pieces of replies up to a sum of bytes."""

    def __init__(self, client: Any, most: int) -> None:
        self._client = client
        self._left = most + _FRAME
        self._lock = threading.Lock()  # Flower fetches several pieces at a time

    @property
    def exceeded(self) -> bool:
        """Whether there was more than may be fetched."""
        return self._left < 0

    def PullObject(self, request: Any, *args: Any, **options: Any) -> Any:
        """Fetch a piece."""
        if self.exceeded:
            return PullObjectResponse(object_found=False)
        response = self._client.PullObject(request, *args, **options)
        with self._lock:
            self._left -= len(response.object_content)
        return PullObjectResponse(object_found=False) if self.exceeded else response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@contextmanager
def fetching_at_most(grid: Grid, most: int | None) -> Iterator[Limited | None]:
    """Limit what a grid fetches within the block; yields what knows whether there was more.

    Args:
        grid: Flower's; one that fetches nothing over a network is left as it is.
        most: bytes; None: there is no limit.
    """
    client = getattr(grid, "_client", None)
    if most is None or not hasattr(client, "PullObject"):
        yield None
        return
    limited = Limited(client, most)
    grid._client = limited  # type: ignore[attr-defined]
    try:
        yield limited
    finally:
        grid._client = client  # type: ignore[attr-defined]
