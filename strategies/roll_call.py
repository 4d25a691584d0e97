"""Who is there: every node describes itself and gets a partition id.

A simulation numbers its nodes by their ids. A device of a deployment may name its partition id
itself, or is numbered by its name, then by its node id; which of these it has is its identity,
so that it keeps its number when the server starts again (`kept.py`). A node id is stable only
where SuperNodes are authenticated: give devices names, or partition ids, for sets that can be
made again. Both are the device's own word, so the node id is kept beside it: a place is not given
to another node while the one that has taken it is there.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING

from flwr.app import RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from fedistill import wire, wire_describe
from fedistill.config import Config
from fedistill.errors import ClientsFailed, WireError
from fedistill.images import DataSpec
from fedistill.wire import Description
from strategies.exchange import Exchange
from strategies.failures import last_line
from strategies.kept import KeptReplies

UNNUMBERED = -1  # the partition id of a device that waits for one
_NODE_POLL_S = 0.2
_PATIENCE_S = 600.0  # to describe a shard a device decodes its images, once

Report = Callable[[str, int, int, str], None]


@dataclass
class Roll:
    """Who takes part.

    Attributes:
        nodes: node id of each partition id.
        descriptions: what each has said, by partition id.
        refused: why a node takes no part, by node id.
    """

    nodes: dict[int, int] = field(default_factory=dict)
    descriptions: dict[int, Description] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


def identity(found: Description, node: int) -> str:
    """Return what tells a device from the others."""
    if found.partition_id != UNNUMBERED:
        return f"id {found.partition_id}"
    return f"name {found.name}" if found.name else f"node {node}"


def number(
    found: Mapping[int, Description],
    clients: int,
    known: Mapping[int, str] | None = None,
    closed: bool = True,
    nodes: Mapping[int, int] | None = None,
) -> Roll:
    """Give each device a partition id.

    Args:
        found: what each node has said.
        clients: how many partition ids there are.
        known: identities that have a number already.
        closed: with known ones, others come too late.
        nodes: node ids that the known ones had, by partition id.
    """
    roll = Roll(refused=_pretenders(found, known or {}, nodes or {}))
    found = {node: it for node, it in found.items() if node not in roll.refused}
    taken: dict[str, int] = {}
    claimed = {it.partition_id for it in found.values()}
    present = {identity(it, node) for node, it in found.items()}
    # Who is not there keeps no place from others, and nobody keeps one that another claims.
    numbers = {
        who: client
        for client, who in (known or {}).items()
        if who in present and (client not in claimed or who == f"id {client}")
    }
    reserved = claimed | set(numbers.values())
    free = [client for client in range(clients) if client not in reserved]
    for node in sorted(found, key=lambda node: (found[node].name, node)):
        description = found[node]
        who = identity(description, node)
        client = description.partition_id
        if who in taken:
            roll.refused[node] = f"another node ({taken[who]}) has its {who}; give each its own"
        elif known and closed and who not in numbers:
            roll.refused[node] = "it came when the run had begun without it; it can join the next"
        elif client != UNNUMBERED and not 0 <= client < clients:
            roll.refused[node] = (
                f"its partition-id is {client} and partition.clients is {clients}; accepted: "
                f"0 to {clients - 1}"
            )
        elif client == UNNUMBERED and who not in numbers and not free:
            roll.refused[node] = f"all places are taken: partition.clients is {clients}"
        else:
            taken[who] = node
            if who in numbers:
                client = numbers[who]
            elif client == UNNUMBERED:
                client = free.pop(0)
            roll.nodes[client] = node
            roll.descriptions[client] = description
    roll.nodes = dict(sorted(roll.nodes.items()))
    roll.descriptions = dict(sorted(roll.descriptions.items()))
    return roll


def _pretenders(
    found: Mapping[int, Description], known: Mapping[int, str], nodes: Mapping[int, int]
) -> dict[int, str]:
    """Refuse who wants a place of which another node is there that has taken it before."""
    held = {
        client: node
        for client, node in nodes.items()
        if node in found and identity(found[node], node) == known.get(client)
    }
    place_of = {who: client for client, who in known.items()}
    refused = {}
    for node, it in found.items():
        who = identity(it, node)
        client = place_of.get(who, it.partition_id)
        if held.get(client, node) != node:
            refused[node] = (
                f"its {who} is the place of another node ({held[client]}) in this run, which is "
                "there; give each its own"
            )
    return refused


def call(
    exchange: Exchange,
    grid: Grid,
    spec: DataSpec,
    report: Report = lambda stage, done, total, note: None,
    pixels: bool = False,
) -> dict[int, Description]:
    """Let everybody describe what they hold, and number them.

    Args:
        exchange: its `nodes` and `names` are filled in; who did not come has failed.
        grid: to reach the nodes.
        spec: of the data set.
        report: called with stage, nodes that are there, nodes that are wanted, and a note.
        pixels: whether devices are asked for the pixel levels of their images.

    Returns:
        What each has said, by partition id.

    Raises:
        ClientsFailed: too few are there in time.
    """
    if exchange.kept is None:
        found = _simulation(exchange, grid, spec, report)
    else:
        found = Devices(exchange, grid, spec, exchange.kept, report, pixels).call()
    exchange.require_clients()
    return dict(sorted(found.items()))


def _simulation(
    exchange: Exchange, grid: Grid, spec: DataSpec, report: Report
) -> dict[int, Description]:
    clients = exchange.config.partition.clients
    exchange.nodes = dict(enumerate(_wait(grid, exchange.config, clients, report)[:clients]))
    contents = {n: wire.encode_describe_request(exchange.config, spec, n) for n in exchange.nodes}

    def read(client: int, content: RecordDict) -> Description:
        found = wire.decode_description(content, spec)
        if found.partition_id != client:
            raise WireError(f"it describes partition {found.partition_id}")
        return found

    most = dict.fromkeys(contents, wire_describe.largest(spec))
    return dict(exchange.ask(grid, wire.DESCRIBE, contents, read, most))


@dataclass(frozen=True)
class Devices:
    """The devices of a deployment: called once, and found again after a restart."""

    exchange: Exchange
    grid: Grid
    spec: DataSpec
    kept: KeptReplies
    report: Report
    pixels: bool

    def call(self) -> dict[int, Description]:
        """Let the devices describe themselves, or read what they said in an earlier life."""
        self.exchange.locate = self.locate
        found = None if self.kept.mended or not self.kept.roll else self._remembered()
        if found is None:
            found = self._called()
        for client, why in self.kept.absent.items():
            self.exchange.fail(client, why)
        return found

    def locate(self) -> None:
        """Find the nodes of devices that were numbered in an earlier life, if they are there."""
        try:
            self._ask(least=1)
        except ClientsFailed as error:
            log(WARNING, "%s", error)

    def _called(self) -> dict[int, Description]:
        """Let all nodes speak, and keep who is who."""
        roll, contents = self._ask(self.exchange.config.federation.min_clients)
        everyone = range(self.exchange.config.partition.clients)
        why = f"no device took this place{_why(roll.refused)}"
        self.kept.call(
            {n: identity(found, roll.nodes[n]) for n, found in roll.descriptions.items()},
            {client: why for client in everyone if client not in roll.nodes},
            roll.nodes,
        )
        for client, content in contents.items():
            self.kept.put(client, wire.DESCRIBE, self._request(), content)
        return roll.descriptions

    def _request(self) -> RecordDict:
        config, spec = self.exchange.config, self.spec
        return wire.encode_describe_request(config, spec, UNNUMBERED, self.pixels)

    def _remembered(self) -> dict[int, Description] | None:
        request = self._request()
        found = {}
        for client, who in self.kept.roll.items():
            known = self.exchange.recall(
                client,
                wire.DESCRIBE,
                request,
                lambda _, content: wire.decode_description(content, self.spec),
            )
            if known is None:
                return None
            found[client] = known
            self.exchange.names[client] = _name(found[client], who)
        log(INFO, "describe: %s devices are known from before", len(found))
        return found

    def _ask(self, least: int) -> tuple[Roll, dict[int, RecordDict]]:
        """Let all nodes that are there describe themselves, and number them."""
        exchange, config = self.exchange, self.exchange.config
        nodes = _wait(self.grid, config, least, self.report)
        exchange.nodes = {node: node for node in nodes}  # they go by their ids till numbered
        messages = exchange.messages(wire.DESCRIBE, dict.fromkeys(nodes, self._request()))
        found, contents, refused = {}, {}, dict[int, str]()
        most = dict.fromkeys(nodes, wire_describe.largest(self.spec))
        replies = exchange.replies(self.grid, messages, most, refused.__setitem__, _PATIENCE_S)
        for node, reply in replies:
            try:
                described = wire.decode_description(reply.content, self.spec)
                if self.pixels and not described.pixels:
                    raise WireError("it holds no pixel levels, which were asked for")
            except WireError as error:
                refused[node] = f"its description was refused: {error}"
                continue
            found[node], contents[node] = described, reply.content
        closed = not self.kept.mended
        roll = number(found, config.partition.clients, self.kept.roll, closed, self.kept.nodes)
        roll.refused |= refused
        for node, why in sorted(roll.refused.items()):
            log(WARNING, "node %s takes no part: %s", node, last_line(why))
        names = {n: _name(it, identity(it, roll.nodes[n])) for n, it in roll.descriptions.items()}
        exchange.enroll(roll.nodes, names)
        for client, name in names.items():
            machine = roll.descriptions[client].machine
            log(
                INFO, "client %s is %s: %s", client, name, ", ".join(filter(None, machine.values()))
            )
        return roll, {client: contents[node] for client, node in roll.nodes.items()}


def _name(found: Description, who: str) -> str:
    """Return what people call a device: one without a name is called by what tells it apart."""
    return found.name or who


def _why(refused: Mapping[int, str]) -> str:
    reasons = [f"node {node}: {last_line(why)}" for node, why in sorted(refused.items())]
    return f"; refused were {'; '.join(reasons)}" if reasons else ""


def _wait(grid: Grid, config: Config, least: int, report: Report) -> list[int]:
    """Wait for all nodes; when the time is up, for at least so many; return their ids, sorted.

    Raises:
        ClientsFailed: they are not there in time.
    """
    wanted, wait_s = config.partition.clients, config.federation.wait_s
    deadline = time.monotonic() + wait_s
    shown = -1
    while len(found := sorted(grid.get_node_ids())) < wanted:
        if len(found) != shown:
            shown = len(found)
            report("wait", shown, wanted, f"{shown} of {wanted} nodes are there")
        if time.monotonic() > deadline:
            if len(found) >= max(1, least):
                break
            raise ClientsFailed(
                f"{len(found)} of {wanted} nodes came within federation.wait_s, which is "
                f"{wait_s:g} s; start the missing SuperNodes, lower partition.clients, or wait "
                "longer"
            )
        time.sleep(_NODE_POLL_S)
    there = min(len(found), wanted)  # the simulation of a sweep has as many as its largest run
    report("wait", wanted, wanted, f"{there} of {wanted} nodes are there")
    return found
