"""Talk to the clients by partition id: messages out, good replies back, failures noted.

Node ids are random and replies come in any order, so nothing beyond this file uses either.
"""

import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import Message, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from fedistill import wire
from fedistill.config import Config
from fedistill.errors import ClientsFailed, WorkerDied

_NODE_POLL_S = 0.2
_NODE_WAIT_S = 120.0  # a simulation registers its nodes after the ServerApp has started
_GRACE_S = 30.0  # after the time to live, for the explicit "expired" reply to arrive
_UNKNOWN_ERROR = 0  # Flower's code for a dead simulation worker, which then swallows messages


@dataclass
class Traffic:
    """Bytes of serialised messages, by partition id and message type."""

    up: dict[int, dict[str, int]] = field(default_factory=dict)
    down: dict[int, dict[str, int]] = field(default_factory=dict)

    def count(self, way: dict[int, dict[str, int]], client: int, stage: str, size: int) -> None:
        """Add the size of one message to `up` or `down`."""
        stages = way.setdefault(client, {})
        stages[stage] = stages.get(stage, 0) + size

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

    Attributes:
        nodes: node id of each partition id.
        failures: why a client is left out, by partition id.
        traffic: bytes of making the sets.
        beside: bytes that the evaluation costs: labels of other sets than those that are made.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.nodes: dict[int, int] = {}
        self.failures: dict[int, str] = {}
        self.traffic = Traffic()
        self.beside = Traffic()
        self.evaluating = False
        self._asked: dict[str, int] = {}

    def wait_for_nodes(self, grid: Grid) -> None:
        """Wait until enough nodes are there, and give each a partition id.

        Raises:
            ClientsFailed: they are not there in time.
        """
        wanted = self.config.partition.clients
        deadline = time.monotonic() + _NODE_WAIT_S
        while len(found := sorted(grid.get_node_ids())) < wanted:
            if time.monotonic() > deadline:
                raise ClientsFailed(
                    f"{len(found)} of {wanted} nodes came within {_NODE_WAIT_S:g} s; start the "
                    "missing SuperNodes, or lower partition.clients"
                )
            time.sleep(_NODE_POLL_S)
        self.nodes = dict(enumerate(found[:wanted]))

    def messages(self, message_type: str, contents: Mapping[int, RecordDict]) -> list[Message]:
        """Make a message for each client, and count its bytes."""
        made = []
        for client, content in contents.items():
            ledger = self._ledger
            ledger.count(ledger.down, client, message_type, wire.size(content))
            made.append(
                Message(
                    content,
                    dst_node_id=self.nodes[client],
                    message_type=message_type,
                    group_id=message_type,
                    ttl=self.config.federation.deadline_s,
                )
            )
        return made

    def send(self, grid: Grid, messages: list[Message]) -> list[Message]:
        """Send messages and wait for the replies until the deadline."""
        timeout = self.config.federation.deadline_s + _GRACE_S
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        client_of = {node: client for client, node in self.nodes.items()}
        # By message, not by sender: an error made by the SuperLink comes from its own id.
        for message in messages:
            metadata = message.metadata
            self._asked[metadata.message_id] = client_of[metadata.dst_node_id]
        return replies

    def good(
        self,
        replies: Iterable[Message],
        asked: Iterable[int],
        fail: Callable[[int, str], None] | None = None,
    ) -> dict[int, RecordDict]:
        """Return the contents of the good replies by partition id; note the failures.

        Args:
            replies: in any order.
            asked: who should have answered; who did not has failed.
            fail: is told who has failed, and why; None: who fails is left out of the run.

        Raises:
            WorkerDied: a worker of the simulation died, which makes further replies worthless.
        """
        fail = fail or self.fail
        contents = {}
        for reply in replies:
            client = self._asked[reply.metadata.reply_to_message_id]
            if not reply.has_error():
                stage = reply.metadata.message_type
                ledger = self._ledger
                ledger.count(ledger.up, client, stage, wire.size(reply.content))
                contents[client] = reply.content
            elif reply.error.code == _UNKNOWN_ERROR:
                raise WorkerDied(
                    f"the worker process of client {client} died ({reply.error.reason}); if the "
                    "machine ran out of memory, raise federation.cpus_per_client so that fewer "
                    "clients run at once, and run again"
                )
            else:
                fail(client, reply.error.reason or "no reason given")
        for client in asked:
            if client not in contents:
                fail(client, f"no answer within {self.config.federation.deadline_s:g} s")
        return dict(sorted(contents.items()))

    def fail(self, client: int, reason: str) -> None:
        """Leave a client out; the first reason counts."""
        if client not in self.failures:
            self.failures[client] = reason
            # Indented: the lines of a traceback then belong to this message for every reader.
            text = textwrap.indent(reason, "    ")
            log(WARNING, "client %s failed and is left out:\n%s", client, text)

    def require_clients(self) -> None:
        """Stop a run with too few clients.

        Raises:
            ClientsFailed: fewer than `federation.min_clients` have not failed.
        """
        least = self.config.federation.min_clients
        good = len(self.nodes) - len(self.failures)
        if good < max(1, least):
            raise ClientsFailed(
                f"{good} of {len(self.nodes)} clients are left and federation.min_clients is "
                f"{least}; {self.reasons()}"
            )

    def reasons(self) -> str:
        """Say in one line why clients have failed."""
        return last_lines(self.failures)

    @property
    def _ledger(self) -> Traffic:
        return self.beside if self.evaluating else self.traffic


def last_lines(reasons: Mapping[int, str]) -> str:
    """Say in one line why clients have failed: of a traceback the last line."""
    lines = {client: reason.strip().splitlines()[-1] for client, reason in reasons.items()}
    return "; ".join(f"client {client}: {line}" for client, line in lines.items())
