"""Fetch no more of a reply than it can have reason to hold, and survive what it is made of.

A reply lies on the SuperLink as objects that name each other, its arrays in pieces of some
megabytes. Flower fetches all of them and puts them together before we see anything: a hostile
device could fill the server's memory, also with little to fetch, since an array may name a piece
many times over. Beyond a limit no further object is found here, and Flower turns the reply into an
error. And Flower waits for hours for an object that was announced and never comes, while the
replies of all others lie there: so there is a limit of time, too. What stands here is no public API
of Flower; with a grid that works in another way nothing is limited, and replies are weighed when
they are there.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.app import Array, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)

from fedistill import records
from fedistill.errors import WireError

_FRAME = 1_000_000  # bytes of a message beside its arrays: headers of pieces, names
# Bytes of all objects but pieces. Names and small numbers take thirty times theirs in Python, and
# what is allowed for the weights of a large network must not all be names.
_BESIDE = 8_000_000


class Limited:
    """A client of Flower's Runtime API that finds objects of replies up to a sum of bytes.

    The limit holds for what is fetched, and for what its arrays are going to hold; objects beside
    the data of arrays have one of their own.
    """

    def __init__(self, client: Any, most: int, until: float) -> None:
        self._client = client
        self._until = until
        self._fetch = self._unfold = most + _FRAME  # bytes that are left
        self._beside = _BESIDE
        self._sizes: dict[str, int] = {}  # bytes that an array takes of each object that has come
        self._used = Counter[str]()  # how often arrays name each object, come or not
        self._lock = threading.Lock()  # Flower fetches several objects at a time

    @property
    def exceeded(self) -> bool:
        """Whether there was more than may be fetched, or put together."""
        return min(self._fetch, self._unfold, self._beside) < 0

    def PullObject(self, request: Any, *args: Any, **options: Any) -> Any:
        """Fetch an object."""
        if time.monotonic() > self._until:  # Flower asks again and again, until something is raised
            raise TimeoutError("parts of it that were announced have not come in time")
        if self.exceeded:
            return PullObjectResponse(object_found=False)
        response = self._client.PullObject(request, *args, **options)
        if response.object_content:
            with self._lock:
                self._weigh(request.object_id, response.object_content)
        return PullObjectResponse(object_found=False) if self.exceeded else response

    def _weigh(self, key: str, content: bytes) -> None:
        """Take off what an object costs; pieces and the arrays made of them come in any order."""
        self._fetch -= len(content)
        kind, parts, _ = get_object_head_values_from_object_content(content)  # not its own length
        is_piece = kind == ArrayChunk.__qualname__
        self._beside -= 0 if is_piece else len(content)
        if key not in self._sizes:
            # Arrays are made of pieces alone: of arrays they could double from one to the next.
            self._sizes[key] = len(content) if is_piece else self._unfold + 1
            self._unfold -= self._used[key] * self._sizes[key]
        if kind == Array.__qualname__ and not self.exceeded:
            for number in json.loads(get_object_body(content, Array))["arraychunk_ids"]:
                self._used[parts[number]] += 1
                self._unfold -= self._sizes.get(parts[number], 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def pull(grid: Grid, key: str, most: int, until: float, trusted: bool) -> Message | None:
    """Fetch the reply to a message, if it has come.

    Args:
        grid: Flower's.
        key: id of the message.
        most: bytes that the reply can have reason to hold.
        until: when to give up waiting for its parts, by the monotonic clock.
        trusted: whether it comes from a worker of ours: what goes wrong is then a mistake of ours.

    Raises:
        WireError: it holds more, cannot be read, or does not come.
    """
    with _fetching_at_most(grid, most, until) as limited:
        try:
            reply = next(iter(grid.pull_messages([key])), None)
            held = records.held(reply.content) if reply and not reply.has_error() else 0
        except httpx.HTTPError:  # of the way to the SuperLink: no device's fault
            raise
        except Exception as error:  # bytes that are no message make Flower raise almost anything
            if trusted:
                raise
            why = records.plain(f"{type(error).__name__}: {error}")
            raise WireError(f"its reply cannot be read: {why}") from error
    if held > most or (limited and limited.exceeded):
        raise WireError(
            f"its reply was refused: it holds more than {most} bytes, or {_BESIDE} beside arrays"
        )
    return reply


@contextmanager
def _fetching_at_most(grid: Grid, most: int, until: float) -> Iterator[Limited | None]:
    """Limit what a grid fetches within the block; yields what knows whether there was more.

    A grid that fetches nothing over a network is left as it is.
    """
    client = getattr(grid, "_client", None)
    if not hasattr(client, "PullObject"):
        yield None
        return
    limited = Limited(client, most, until)
    grid._client = limited  # type: ignore[attr-defined]
    try:
        yield limited
    finally:
        grid._client = client  # type: ignore[attr-defined]
