"""Messages out, good replies back one at a time, failures in words that help."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from fakes import tiny_config
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedistill import wire
from fedistill.errors import ClientsFailed, WireError, WorkerDied
from strategies import exchange as exchanges
from strategies import local
from strategies.exchange import Exchange
from strategies.failures import Failures
from strategies.kept import KeptReplies

KIND = "train.distill"
LARGE = 1_000_000  # bytes of a reply


class Answers(local.LocalGrid):
    """Gives every message the answer that a table has for its node; makes it when asked."""

    def __init__(self, table: dict[int, Any]) -> None:
        super().__init__(ClientApp(), 0, {})
        self.table = table
        self.sent: dict[str, Message] = {}
        self.alive = list[weakref.ref[Array]]()
        self.most_alive = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            key = f"message {message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = key
            self.sent[key] = message
        return [key for key, it in self.sent.items() if it.metadata.dst_node_id in self.table]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self.alive))
        (key,) = message_ids
        message = self.sent[key]
        answer = self.table[message.metadata.dst_node_id]
        if isinstance(answer, Error):
            return [Message(answer, reply_to=message)]
        if answer is None:
            return []
        array = Array(np.zeros(answer, np.uint8))
        self.alive.append(weakref.ref(array))
        return [Message(RecordDict({"set": ArrayRecord({"images": array})}), reply_to=message)]


def made(clients: int, kept: KeptReplies | None = None, **federation: Any) -> Exchange:
    found = Exchange(tiny_config(partition={"clients": clients}, federation=federation), kept)
    found.nodes = {client: client + 100 for client in range(clients)}
    return found


def contents(*clients: int) -> dict[int, RecordDict]:
    return {n: RecordDict({"request": ConfigRecord({"number": n})}) for n in clients}


def asked(
    exchange: Exchange, grid: Answers, *clients: int, most: int = 10 * LARGE, read: Any = None
) -> Iterator[tuple[int, RecordDict]]:
    """Ask clients, and take their replies as they are."""
    as_it_is = read or (lambda client, content: content)
    return exchange.ask(grid, KIND, contents(*clients), as_it_is, dict.fromkeys(clients, most))


@pytest.fixture(autouse=True)
def _identity():
    with local.task_identity():
        yield


def test_of_fifty_large_replies_one_at_a_time_is_in_memory():
    exchange = made(50)
    grid = Answers(dict.fromkeys(range(100, 150), LARGE))
    seen = 0
    for client, content in asked(exchange, grid, *range(50)):
        assert len(content.array_records["set"]["images"].data) > LARGE
        del content
        seen += 1
        assert client < 50
    assert seen == 50
    assert grid.most_alive <= 2  # the last one, while the next is fetched
    assert exchange.traffic.sums(KIND)["up"] > 50 * LARGE


def test_who_fails_is_left_out_with_the_reason():
    expired, gone, crashed = Error(3, "expired"), Error(5, "x"), Error(8, "y")
    raised = Error(1000, "Traceback\n\x1b[31m  File a.py\nValueError: \x07no")
    table = {100: 10, 101: expired, 102: gone, 103: crashed, 104: raised, 105: Error(1001, None)}
    exchange = made(7, deadline_s=5)
    good = dict(asked(exchange, Answers(table), *range(7)))
    assert list(good) == [0]
    why = exchange.failures
    assert why[1].startswith("no answer within 5 s")
    assert "no sign of life from its SuperNode" in why[2]
    assert "its ClientApp died" in why[3]
    assert why[4].splitlines()[-1] == "ValueError: no"
    assert "\x1b" not in why[4]
    assert why[5] == "no reason given"
    assert "did not take its message" in why[6]
    exchange.require_clients()
    two = made(7, min_clients=2)
    two.failures = why
    with pytest.raises(ClientsFailed, match=r"1 of 7 clients are left.*min_clients is 2"):
        two.require_clients()


@pytest.mark.parametrize("code", [2, 3, 4, 5, 8, 1000])
def test_the_words_of_a_device_steer_no_terminal_and_are_not_without_end(code: int):
    exchange = made(1, min_clients=1)
    words = f"\x1b[2J{'boom' * 1000}\x07\u202eend"
    assert list(asked(exchange, Answers({100: Error(code, words)}), 0)) == []
    assert exchange.failures[0].isprintable()
    assert "boom" in exchange.failures[0]
    assert len(exchange.failures[0]) < 500


def test_bytes_are_counted_to_what_was_asked_whatever_a_reply_calls_itself():
    class Misnamed(Answers):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            (reply,) = super().pull_messages(message_ids)
            reply.metadata.__dict__["_message_type"] = "train.gold"
            return [reply]

    exchange = made(1)
    assert list(dict(asked(exchange, Misnamed({100: 5}), 0))) == [0]
    assert list(exchange.traffic.up[0]) == [KIND]


def test_who_is_silent_is_waited_for_until_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchanges, "_GRACE_S", 0.0)
    exchange = made(2, deadline_s=0.3)
    assert list(dict(asked(exchange, Answers({100: 5, 101: None}), 0, 1))) == [0]
    assert exchange.failures == {1: "no answer within 0.3 s"}


def test_a_message_lives_longer_than_the_server_waits_for_its_reply():
    """A finished reply whose turn to be fetched comes late must still be there."""
    (message,) = made(1, deadline_s=50).messages(KIND, contents(0)).values()
    assert message.metadata.ttl == 100


def test_a_dead_worker_ends_a_simulation():
    with pytest.raises(WorkerDied, match="worker process of client 0 died"):
        list(asked(made(1), Answers({100: Error(0, "ActorDiedError")}), 0))


def test_a_device_ends_no_run(tmp_path):
    """Neither with the code of a dead simulation worker, nor with bytes that are no message."""

    class Garbage(Answers):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            (key,) = message_ids
            if key == "message 101":
                raise ValueError("Error parsing message")
            return super().pull_messages([key])

    exchange = made(3, KeptReplies(tmp_path))
    grid = Garbage({100: 5, 101: 5, 102: Error(0, "ActorDiedError")})
    assert list(dict(asked(exchange, grid, 0, 1, 2))) == [0]
    assert "cannot be read: ValueError: Error parsing message" in exchange.failures[1]
    assert exchange.failures[2] == "ActorDiedError"


def test_what_goes_wrong_in_a_simulation_is_no_fault_of_a_client():
    class Broken(Answers):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake of ours"):
        list(asked(made(1), Broken({100: 5}), 0))


def test_a_reply_that_is_too_large_is_neither_read_nor_kept(tmp_path):
    exchange = made(2, KeptReplies(tmp_path))
    found = asked(exchange, Answers({100: LARGE, 101: 100}), 0, 1, most=1000)
    assert [client for client, _ in found] == [1]
    assert "its reply was refused: it holds more than 1000 bytes" in exchange.failures[0]
    assert len(list(tmp_path.glob("*.pb"))) == 1


def test_who_has_answered_is_not_asked_again(tmp_path):
    first = made(2, KeptReplies(tmp_path))
    dict(asked(first, Answers({100: 7, 101: Error(5, "x")}), 0, 1))
    second = made(2, KeptReplies(tmp_path))
    grid = Answers({102: 9})
    second.nodes[2] = 102
    found = dict(asked(second, grid, 0, 1, 2))
    assert list(found) == [0, 2]
    assert list(grid.sent) == ["message 102"]
    assert second.failures == first.failures  # at the same request: it is not asked again either
    assert second.traffic.sums(KIND)["up"] == first.traffic.sums(KIND)["up"] + wire.size(found[2])


def small(client: int, content: RecordDict) -> int:
    """Read the size of a reply, which is not to be above ten bytes."""
    size = content.array_records["set"]["images"].numpy().size
    if size > 10:
        raise WireError(f"{size} is too much")
    return size


def test_a_reply_that_cannot_be_used_is_not_kept_and_nobody_is_asked_for_it_again(tmp_path):
    """Also where the failure is not the run's, but of those who label or test."""
    for life, answers in ((1, {100: 7, 101: 11}), (2, dict[int, Any]())):
        exchange, grid = made(2, KeptReplies(tmp_path)), Answers(answers)
        failures = Failures("labels no more")
        most = {0: LARGE, 1: LARGE}
        found = exchange.ask(grid, KIND, contents(0, 1), small, most, failures.note)
        assert dict(found) == {0: 7}
        assert failures == {1: "its reply was refused: 11 is too much"}
        assert exchange.failures == {}
        assert len(grid.sent) == (2 if life == 1 else 0)
    assert len(list(tmp_path.glob("*.pb"))) == 1


def test_a_kept_reply_that_has_been_spoilt_is_asked_for_again(tmp_path):
    first = made(1, KeptReplies(tmp_path))
    dict(asked(first, Answers({100: 11}), 0))
    second = made(1, KeptReplies(tmp_path))
    assert dict(asked(second, Answers({100: 9}), 0, read=small)) == {0: 9}
    assert second.failures == {}
    fresh = made(1)
    dict(asked(fresh, Answers({100: 9}), 0))
    assert second.traffic == fresh.traffic  # what was spoilt does not count


def test_nodes_are_looked_for_when_somebody_has_to_be_asked_after_all(tmp_path):
    exchange = made(3, KeptReplies(tmp_path))
    exchange.nodes = {}
    exchange.locate = lambda: exchange.nodes.update({0: 100, 2: 102})
    found = dict(asked(exchange, Answers({100: 1, 102: 1}), 0, 1, 2))
    assert list(found) == [0, 2]
    assert "has not come back" in exchange.failures[1]
