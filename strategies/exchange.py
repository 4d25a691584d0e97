"""Talk to the clients by partition id: messages out, good replies back, failures noted.

Node ids are random and replies come in any order, so nothing beyond this file uses either.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from typing import TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from fedistill import records, wire
from fedistill.config import Config
from fedistill.errors import ClientsFailed, WireError, WorkerDied
from strategies.failures import Failures, last_lines
from strategies.kept import KeptReplies
from strategies.pull_limit import pull

T = TypeVar("T")

# Between two looks for replies: a share of the time that nothing has come, so that devices which
# work for hours do not cost a SuperLink a request for each of them five times a second.
_POLL_S, _POLL_MOST_S, _POLL_SHARE = 0.2, 3.0, 0.02
_REASON_LINES, _REASON_WIDTH = 60, 300
_GRACE_S = 30.0  # after the deadline, for a reply that is on its way
_UPLOAD_S = 60.0  # at least, for the parts of a reply that has been announced
_UNKNOWN_ERROR = 0  # Flower's code for a dead simulation worker, which then swallows messages
# Flower's codes (flwr.common.constant.ErrorCode) whose own words do not help an operator.
_EXPIRED = (3, 4)
_GONE, _CRASHED = 5, 8


@dataclass
class Traffic:
    """Bytes of serialised messages, by partition id and message type."""

    up: dict[int, dict[str, int]] = field(default_factory=dict)
    down: dict[int, dict[str, int]] = field(default_factory=dict)

    def count(self, way: dict[int, dict[str, int]], client: int, stage: str, size: int) -> None:
        """Add the size of one message to `up` or `down`."""
        stages = way.setdefault(client, {})
        stages[stage] = stages.get(stage, 0) + size

    def rename(self, before: Iterable[int], names: Mapping[int, int]) -> None:
        """Let some clients go by other numbers; those of them without one are forgotten."""
        numbers = list(before)
        for way in (self.up, self.down):
            for number, stages in [(number, way.pop(number, {})) for number in numbers]:
                for stage, size in stages.items():
                    if number in names:
                        self.count(way, names[number], stage, size)

    def sums(self, *stages: str) -> dict[str, int]:
        """Return the bytes up and down over all clients, of some message types, or of all."""
        return {
            name: sum(
                size
                for sizes in way.values()
                for stage, size in sizes.items()
                if not stages or stage in stages
            )
            for name, way in (("up", self.up), ("down", self.down))
        }


class Exchange:
    """The clients of one run.

    Args:
        config: of the experiment.
        kept: where good replies are kept, so that nobody is asked twice; None: nowhere.

    Attributes:
        nodes: node id of each partition id.
        names: what the clients of a deployment call themselves, by partition id.
        failures: why a client is left out, by partition id.
        traffic: bytes of making the sets.
        beside: bytes that the evaluation costs: labels of other sets than those that are made.
        simulated: whether the clients are workers of a simulation on this machine.
        locate: fills in `nodes` when a server that was started again has to ask after all.
    """

    def __init__(self, config: Config, kept: KeptReplies | None = None) -> None:
        self.config = config
        self.kept = kept
        self.simulated = kept is None  # what devices say is kept, always
        self.nodes: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.failures = Failures("is left out")
        self.traffic = Traffic()
        self.beside = Traffic()
        self.evaluating = False
        self.locate: Callable[[], None] | None = None

    def enroll(self, nodes: Mapping[int, int], names: Mapping[int, str]) -> None:
        """Give nodes, which have gone by their ids, the partition ids that they go by now."""
        self.traffic.rename(self.nodes, {node: client for client, node in nodes.items()})
        self.nodes = dict(nodes)
        self.names.update(names)

    def called(self, client: int) -> str:
        """Return how a client is called in messages to the user."""
        name = self.names.get(client)
        return f"client {client} ({name})" if name else f"client {client}"

    def find(self, clients: Iterable[int]) -> list[int]:
        """Look for the nodes of clients, if a server that was started again has not needed them.

        Returns:
            Those that are not there.
        """
        wanted = set(clients)
        if self.locate is not None and not wanted <= self.nodes.keys():
            self.locate()
        return sorted(wanted - self.nodes.keys())

    def recall(
        self,
        client: int,
        message_type: str,
        content: RecordDict,
        read: Callable[[int, RecordDict], T],
    ) -> T | None:
        """Read what a client has answered to this before, as if it were asked again."""
        kept = self.kept.get(client, message_type, content) if self.kept else None
        if kept is None:
            return None
        try:
            said = read(client, kept)
        except WireError as error:  # it was good before: a power cut has spoilt it
            log(WARNING, "what client %s said is damaged (%s); ask again", client, error)
            return None
        ledger = self._ledger
        ledger.count(ledger.down, client, message_type, wire.size(content))
        ledger.count(ledger.up, client, message_type, wire.size(kept))
        return said

    def ask(
        self,
        grid: Grid,
        message_type: str,
        contents: Mapping[int, RecordDict],
        read: Callable[[int, RecordDict], T],
        most: Mapping[int, int],
        fail: Callable[[int, str], object] | None = None,
    ) -> Iterator[tuple[int, T]]:
        """Ask clients, and yield what the good replies say as they come: first those kept.

        Args:
            grid: to reach the clients.
            message_type: what is asked of all.
            contents: the request of each partition id.
            read: checks the reply of a partition id and takes out what it says; raises WireError.
            most: bytes that each one's reply can have reason to hold.
            fail: is told who has failed, and why; None: who fails is left out of the run.

        Raises:
            WorkerDied: a worker of the simulation died, which makes further replies worthless.
        """
        left, leave_out = {}, fail or self.fail

        def fail_at_this(client: int, why: str) -> None:
            if self.kept:
                self.kept.fail(client, message_type, contents[client], why)
            leave_out(client, why)

        for client, content in contents.items():
            why = self.kept.failure(client, message_type, content) if self.kept else None
            if why is not None:
                leave_out(client, why)
                continue
            known = self.recall(client, message_type, content, read)
            if known is None:
                left[client] = content
            else:
                yield client, known
        for client in self.find(left):
            fail_at_this(client, "its device has not come back since the server was started again")
            del left[client]
        messages = self.messages(message_type, left)
        for client, reply in self.replies(grid, messages, most, fail_at_this):
            try:
                said = read(client, reply.content)
                if self.kept:
                    self.kept.put(client, message_type, left[client], reply.content)
            except WireError as error:
                fail_at_this(client, f"its reply was refused: {error}")
                continue
            yield client, said

    def messages(self, message_type: str, contents: Mapping[int, RecordDict]) -> dict[int, Message]:
        """Make a message for each client, and count its bytes."""
        made = {}
        for client, content in contents.items():
            ledger = self._ledger
            ledger.count(ledger.down, client, message_type, wire.size(content))
            made[client] = Message(
                content,
                dst_node_id=self.nodes[client],
                message_type=message_type,
                group_id=message_type,
                # Above our deadline: a reply may wait behind a slow upload of another's.
                ttl=2 * self.config.federation.deadline_s,
            )
        return made

    def replies(
        self,
        grid: Grid,
        messages: Mapping[int, Message],
        most: Mapping[int, int],
        fail: Callable[[int, str], object] | None = None,
        deadline_s: float | None = None,
    ) -> Iterator[tuple[int, Message]]:
        """Send messages, and yield the good replies as they come, until the deadline.

        One at a time, so that no more than one is in memory here, whatever their number.

        Args:
            grid: to reach the clients.
            messages: one for each partition id.
            most: as for `ask`.
            fail: as for `ask`.
            deadline_s: how long to wait at most; None: `federation.deadline_s`.

        Raises:
            WorkerDied: a worker of the simulation died, which makes further replies worthless.
        """
        fail = fail or self.fail
        sent = set(grid.push_messages(list(messages.values()))) if messages else set()
        # By message, not by sender: an error made by the SuperLink comes from its own id.
        asked = {message.metadata.message_id: client for client, message in messages.items()}
        for key in asked.keys() - sent:
            fail(asked.pop(key), "the SuperLink did not take its message; is its node still there?")
        limit = min(deadline_s or math.inf, self.config.federation.deadline_s)
        latest = time.monotonic()
        deadline = latest + limit + _GRACE_S
        while asked:
            came = False
            for key in list(asked):
                client = asked[key]
                try:
                    until = max(deadline, time.monotonic() + _UPLOAD_S)
                    reply = pull(grid, key, most[client], until, trusted=self.simulated)
                except WireError as error:
                    fail(client, str(error))
                else:
                    if reply is None:
                        continue
                    if self._is_good(client, reply, limit, fail):
                        self._count_up(client, messages[client].metadata.message_type, reply)
                        yield client, reply
                    reply = None  # it may be large, and the next one is to come
                came = True
                del asked[key]
            now = time.monotonic()
            if asked and now > deadline and not came:  # others may have waited behind one
                break
            if came:
                latest = now
            elif asked:
                time.sleep(min(max(_POLL_S, _POLL_SHARE * (now - latest)), _POLL_MOST_S))
        for client in asked.values():
            fail(client, f"no answer within {limit:g} s")

    def _is_good(
        self, client: int, reply: Message, limit: float, fail: Callable[[int, str], object]
    ) -> bool:
        if not reply.has_error():
            return True
        if reply.error.code == _UNKNOWN_ERROR and self.simulated:  # devices may say anything
            raise WorkerDied(
                f"the worker process of client {client} died ({reply.error.reason}); if the "
                "machine ran out of memory, raise federation.cpus_per_client so that fewer "
                "clients run at once, and run again"
            )
        fail(client, _reason(reply.error, limit))
        return False

    def _count_up(self, client: int, message_type: str, reply: Message) -> None:
        """Count the bytes of a reply to what was asked; its own type may be anything."""
        ledger = self._ledger
        ledger.count(ledger.up, client, message_type, wire.size(reply.content))

    def fail(self, client: int, reason: str) -> None:
        """Leave a client out; the first reason counts."""
        if self.failures.note(client, reason) and self.kept:
            self.kept.left_out(client)

    def require_clients(self) -> None:
        """Stop a run with too few clients.

        Raises:
            ClientsFailed: fewer than `federation.min_clients` have not failed.
        """
        least = self.config.federation.min_clients
        good = len((self.nodes.keys() | self.names.keys()) - self.failures.keys())
        if good < max(1, least):
            raise ClientsFailed(
                f"{good} of {self.config.partition.clients} clients are left and "
                f"federation.min_clients is {least}; {self.reasons()}"
            )

    def reasons(self) -> str:
        """Say in one line why clients have failed."""
        return last_lines(self.failures)

    @property
    def _ledger(self) -> Traffic:
        return self.beside if self.evaluating else self.traffic


def _reason(error: Error, limit: float) -> str:
    """Say why a client has not answered, in words of ours for what the network does."""
    # Words from the network: not too many, and none that a terminal takes for orders.
    words = error.reason or "no reason given"
    shown = records.plain(words, _REASON_WIDTH)
    if error.code in _EXPIRED:
        return f"no answer within {limit:g} s ({shown})"
    if error.code == _GONE:
        return f"its node is gone: no sign of life from its SuperNode ({shown})"
    if error.code == _CRASHED:
        return (
            f"its ClientApp died ({shown}); perhaps the device ran out of memory: look at the "
            "SuperNode's log"
        )
    lines = [line for line in words.splitlines() if line.strip()]
    last = [_indent(line) + records.plain(line, _REASON_WIDTH) for line in lines[-_REASON_LINES:]]
    return "\n".join(last) or "no reason given"


def _indent(line: str) -> str:
    return " " * min(len(line) - len(line.lstrip(" ")), 8)
