"""What a real HttpGrid of Flower fetches of a reply, from a SuperLink that is made up."""

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, Message
from flwr.proto.message_pb2 import PullObjectResponse
from superlinks import MEGABYTE, Objects, SuperLink, ask, honest, noise

from strategies.kept import KeptReplies


@pytest.mark.parametrize("megabytes", [1, 12])
@pytest.mark.parametrize("make", [noise, lambda megabytes: noise(megabytes) * 0], ids=["", "same"])
def test_a_reply_of_the_expected_size_arrives(
    megabytes: int, make: Callable[[int], np.ndarray[Any, Any]]
):
    """Also one whose pieces are all alike, which is fetched for less than it holds."""
    size = megabytes * MEGABYTE
    exchange, sizes = ask(SuperLink({77: honest(make(megabytes))}), size + 10_000)
    assert (exchange.failures, sizes) == ({}, {0: size})


def test_a_reply_of_two_arrays_that_are_alike_arrives():
    exchange, sizes = ask(SuperLink({77: honest(noise(6), noise(6))}), 12 * MEGABYTE + 10_000)
    assert (exchange.failures, sizes) == ({}, {0: 6 * MEGABYTE})


def test_of_a_reply_that_is_far_too_large_little_is_fetched():
    superlink = SuperLink({77: honest(noise(60))})
    exchange, sizes = ask(superlink, MEGABYTE)
    assert sizes == {}
    assert "its reply was refused: it holds more than 1000000 bytes" in exchange.failures[0]
    assert superlink.fetched < 30 * MEGABYTE  # the limit, and pieces that were on their way


def _array_of_one_piece(objects: Objects) -> str:
    return objects.array(objects.piece(), times=500)


def _array_of_a_piece_that_lies(objects: Objects) -> str:
    piece = objects.add_whole(b"ArrayChunk  -999999999\x00" + bytes(MEGABYTE))
    return objects.array(piece, times=500)


def _arrays_of_one_piece(objects: Objects) -> list[str]:
    return [objects.array(objects.piece(), shape=[number]) for number in range(500)]


def _array_of_arrays(objects: Objects) -> str:
    found = objects.piece(1000)
    for _ in range(5):
        found = objects.array(found, times=10)
    return found


def _chain(objects: Objects) -> str:
    found = objects.add("RecordDict", "{}")
    for _ in range(1500):
        found = objects.add("RecordDict", json.dumps({"a": found}), found)
    return found


def _good_images(objects: Objects, **said: Any) -> str:
    array = Array(np.zeros(9, np.uint8))
    found = {"shape": [9], **said}
    return objects.content(objects.array(objects.add("ArrayChunk", array.data), **found))


DEEP = "[" * 100_000
TOO_MUCH, UNREADABLE = "it holds more than 2000000 bytes", "its reply cannot be read: "
HOSTILE: dict[str, tuple[Callable[[Objects], str], str]] = {
    "a piece 500 times in an array": (lambda it: it.content(_array_of_one_piece(it)), TOO_MUCH),
    "a piece that lies of its size": (
        lambda it: it.content(_array_of_a_piece_that_lies(it)),
        TOO_MUCH,
    ),
    "a piece in 500 arrays": (lambda it: it.content(*_arrays_of_one_piece(it)), TOO_MUCH),
    "arrays of arrays": (lambda it: it.content(_array_of_arrays(it)), TOO_MUCH),
    "an array of a record": (lambda it: it.content(it.array(it.record())), TOO_MUCH),
    "a deep array": (lambda it: it.content(it.add("Array", DEEP)), f"{UNREADABLE}RecursionError"),
    "a deep record": (
        lambda it: it.add("RecordDict", "{}", it.add("ArrayRecord", DEEP)),
        f"{UNREADABLE}RecursionError",
    ),
    "a deep content": (lambda it: it.add("RecordDict", DEEP), f"{UNREADABLE}RecursionError"),
    "a chain of contents": (_chain, f"{UNREADABLE}RecursionError"),
    "a piece that is not there": (lambda it: it.content(it.array("0" * 64)), UNREADABLE),
    "a piece of no number": (
        lambda it: it.content(it.array(it.piece(9), arraychunk_ids=["x"])),
        UNREADABLE,
    ),
    "an array that is text": (lambda it: it.content(it.add("Array", "\x00\x00")), UNREADABLE),
    "an array for a content": (lambda it: it.array(it.piece(9)), UNREADABLE),
    "an object of no kind": (lambda it: it.add("Mothership", ""), UNREADABLE),
    "a shape that is not its own": (
        lambda it: _good_images(it, shape=[2**70]),
        "its reply was refused: the array 'images' cannot be read",
    ),
    "a type that is no text": (
        lambda it: _good_images(it, dtype="\ud800"),
        "its reply was refused: the array 'images' cannot be read",
    ),
}


@pytest.mark.parametrize(("make", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_device_takes_no_memory_and_nothing_from_the_others(
    tmp_path: Path, make: Callable[[Objects], str], why: str
):
    def hostile(objects: Objects, message: Message) -> str:
        return objects.message(message, make(objects))

    one = honest(np.zeros(9, np.uint8))
    superlink = SuperLink({77: one, 78: hostile, 79: one})
    tracemalloc.start()
    try:
        exchange, sizes = ask(superlink, 2 * MEGABYTE, KeptReplies(tmp_path), devices=3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == {0: 9, 2: 9}
    assert exchange.failures.keys() == {1}
    assert why in exchange.failures[1]
    assert exchange.failures[1].isprintable()
    assert len(list(tmp_path.glob("*.pb"))) == 2
    assert peak < 30 * MEGABYTE


def test_what_is_allowed_for_arrays_may_not_be_spent_on_names():
    names = f"[{'[],' * 3_000_000}[]]"  # nine megabytes, and some hundreds as lists of Python
    superlink = SuperLink({77: lambda it, to: it.message(to, it.add("RecordDict", names))})
    tracemalloc.start()
    try:
        exchange, _ = ask(superlink, 100 * MEGABYTE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "or 8000000 beside arrays" in exchange.failures[0]
    assert peak < 60 * MEGABYTE


def test_a_message_of_nothing_and_one_that_is_none_end_no_run(tmp_path: Path):
    one = honest(np.zeros(9, np.uint8))
    superlink = SuperLink(
        {77: lambda it, to: it.message(to), 78: lambda it, to: it.array(it.piece(9)), 79: one}
    )
    exchange, sizes = ask(superlink, MEGABYTE, KeptReplies(tmp_path), devices=3)
    assert sizes == {2: 9}
    assert all(UNREADABLE in why for why in exchange.failures.values())


def test_the_good_images_are_good(tmp_path: Path):
    """What lies about itself above is refused for that alone."""
    superlink = SuperLink({77: lambda it, to: it.message(to, _good_images(it))})
    exchange, sizes = ask(superlink, MEGABYTE, KeptReplies(tmp_path))
    assert (exchange.failures, sizes) == ({}, {0: 9})


def test_a_part_that_never_comes_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Flower would wait for it for two hours; the others have answered meanwhile."""
    monkeypatch.setattr("strategies.exchange._GRACE_S", 0.0)
    monkeypatch.setattr("strategies.exchange._UPLOAD_S", 0.1)
    one = honest(np.zeros(9, np.uint8))
    missing = "0" * 64
    superlink = SuperLink(
        {77: lambda it, to: it.message(to, it.content(it.array(missing))), 78: one, 79: one}
    )
    fetch = superlink.PullObject

    def still_on_its_way(request: Any) -> Any:
        if request.object_id == missing:
            return PullObjectResponse(object_found=True, object_available=False)
        return fetch(request)

    superlink.PullObject = still_on_its_way  # type: ignore[method-assign]
    superlink.announced = (missing,)
    begun = time.monotonic()
    exchange, sizes = ask(superlink, MEGABYTE, KeptReplies(tmp_path), devices=3, deadline_s=0.5)
    assert sizes == {1: 9, 2: 9}
    assert "have not come in time" in exchange.failures[0]
    assert time.monotonic() - begun < 60


def test_a_superlink_that_is_away_is_no_fault_of_a_device(tmp_path: Path):
    superlink = SuperLink({77: honest(np.zeros(9, np.uint8))})

    def away(request: Any) -> Any:
        raise httpx.ConnectError("the network is down")

    superlink.PullObject = away  # type: ignore[method-assign]
    with pytest.raises(httpx.ConnectError, match="the network is down"):
        ask(superlink, MEGABYTE, KeptReplies(tmp_path))
    assert not list(tmp_path.glob("failed.json"))
