"""FedDistill: the flow of messages that every strategy shares.

describe -> distill -> repair until nothing is missing -> integrate -> refine. A strategy is a
subclass that overrides `refine`. The arrays of its result are the synthetic sets, not weights.

Replies arrive in any order and node ids are random, so everything is kept by partition id.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedistill import slots, wire
from fedistill.client import restore_teacher
from fedistill.config import Config
from fedistill.errors import ClientsFailed, PartitionError, RunError, WireError
from fedistill.images import DataSpec
from fedistill.sets import SyntheticSet
from fedistill.shares import Share, integrate
from fedistill.slots import Plan

_NODE_POLL_S = 0.2
_NODE_WAIT_S = 120.0  # a simulation registers its nodes after the ServerApp has started
_GRACE_S = 30.0  # after the time to live, for the explicit "expired" reply to arrive
_UNKNOWN_ERROR = 0  # Flower's code for a dead simulation worker, which then swallows messages

Report = Callable[[str, int, int, str], None]
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass
class Traffic:
    """Bytes of serialised messages, by partition id and message type."""

    up: dict[int, dict[str, int]] = field(default_factory=dict)
    down: dict[int, dict[str, int]] = field(default_factory=dict)

    def count(self, way: dict[int, dict[str, int]], client: int, stage: str, size: int) -> None:
        """Add the size of one message to `up` or `down`."""
        stages = way.setdefault(client, {})
        stages[stage] = stages.get(stage, 0) + size

    def total(self, way: Mapping[int, Mapping[str, int]]) -> int:
        """Sum over clients and stages."""
        return sum(sum(stages.values()) for stages in way.values())


class FedDistill(Strategy):
    """Base of the strategies: collects shares until the budget is full, then refines the union.

    Args:
        config: of the experiment.
        spec: of the data set.
        device: where the server works.
        dtype: of its convolutions.
        report: called with stage, steps done, steps in all, and a note.

    After `start`: `sets` holds the refined set of each IPC, `plans` who made what, `shares` and
    `teachers` what each client delivered, `failures` why a client is absent, `traffic` the bytes.
    """

    def __init__(
        self,
        config: Config,
        spec: DataSpec,
        *,
        device: torch.device,
        dtype: torch.dtype,
        report: Report = lambda stage, done, total, note: None,
    ) -> None:
        self.config = config
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.report = report
        self.descriptions: dict[int, wire.Description] = {}
        self.shares: dict[int, Share] = {}
        self.plans: dict[int, Plan] = {}
        self.sets: dict[int, SyntheticSet] = {}
        self.teachers: dict[int, nn.Module] = {}
        self.failures: dict[int, str] = {}
        self.traffic = Traffic()
        self.seconds: dict[str, float] = {}
        self._nodes: dict[int, int] = {}
        self._requests: dict[int, wire.DistillRequest] = {}
        self._asked: dict[str, int] = {}

    @abstractmethod
    def refine(self, synthetic: SyntheticSet) -> SyntheticSet:
        """Turn the union of the shares into the set that students are trained on."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 0.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        **kwargs: object,
    ) -> Result:
        """Run the federation: as many rounds of distilling as it takes to fill the budget.

        Args:
            grid: to reach the clients.
            initial_arrays: not used: a set is made from nothing.
            num_rounds: not used: a second round is needed only when a client has failed.
            timeout: not used: `federation.deadline_s` is each phase's limit.
            train_config: not used: the experiment's config travels in every request.
            evaluate_config: not used.
            evaluate_fn: called once with the sets' arrays.
            **kwargs: accepted for newer versions of Flower.

        Raises:
            ClientsFailed: fewer good clients than `federation.min_clients` are left, or a class
                that only failed clients hold.
            PartitionError: nobody holds a class.
        """
        result = Result()
        self._nodes = self._wait_for_nodes(grid)
        self._describe(grid)
        self._plan()
        server_round = 0
        while self._missing():
            server_round += 1
            messages = list(self.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid))
            replies = self._exchange(grid, messages)
            _, metrics = self.aggregate_train(server_round, replies)
            if metrics is not None:
                result.train_metrics_clientapp[server_round] = metrics
            self._deal_again()
        self.teachers = dict(sorted(self.teachers.items()))
        started = time.perf_counter()
        for ipc, plan in self.plans.items():
            self.sets[ipc] = self.refine(integrate(list(self.shares.values()), plan, self.spec))
        self.seconds["relabel"] = time.perf_counter() - started
        result.arrays = _arrays(self.sets)
        if evaluate_fn is not None:
            scores = evaluate_fn(server_round, result.arrays)
            if scores is not None:
                result.evaluate_metrics_serverapp[server_round] = scores
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask each client for the images that it still owes.

        A client asked again gets its teacher back with the request: its process may have kept
        nothing.
        """
        self._requests = {
            client: wire.DistillRequest(
                config=self.config,
                spec=self.spec,
                partition_id=client,
                counts=counts,
                attempt=server_round - 1,
                teachers=self.shares[client].teachers if client in self.shares else (),
            )
            for client, counts in self._missing().items()
        }
        log(INFO, "distill: round %s asks %s clients", server_round, len(self._requests))
        return [
            self._message(client, wire.DISTILL, wire.encode_distill_request(request))
            for client, request in self._requests.items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the shares that arrived; a client whose reply is not a share has failed."""
        received = 0
        good = self._good(replies)
        for client, content in good.items():
            try:
                share = wire.decode_share(content, self._requests[client])
                teacher = restore_teacher(self.config, self.spec, client, share.teachers[0])
            except (WireError, RuntimeError) as error:
                self._fail(client, f"its reply was refused: {error}")
                continue
            self.teachers[client] = teacher.to(self.device)
            known = self.shares.get(client)
            self.shares[client] = share if known is None else known.extended(share)
            received += len(share.images)
        for client in self._requests:
            if client not in good:  # also one that answered before: it would be asked for ever
                self._fail(client, f"no answer within {self.config.federation.deadline_s:g} s")
        log(INFO, "distill: received %s images, %s clients failed", received, len(self.failures))
        return None, MetricRecord({"images": received, "failures": len(self.failures)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: students are tested on the server."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing was asked."""
        return None

    def summary(self) -> None:
        """Log what the strategy does."""
        distill = self.config.distill
        log(INFO, "\t├──> %s: %s, IPC %s", type(self).__name__, distill.name, list(distill.ipc))
        relabel = self.config.relabel
        log(INFO, "\t└──> relabel: %s, %s views", relabel.name, relabel.views)

    def _wait_for_nodes(self, grid: Grid) -> dict[int, int]:
        """Wait until enough nodes are there, and give each a partition id.

        Raises:
            ClientsFailed: they are not there in time.
        """
        wanted = self.config.partition.clients
        deadline = time.monotonic() + _NODE_WAIT_S
        while True:
            nodes = sorted(grid.get_node_ids())
            if len(nodes) >= wanted:
                return dict(enumerate(nodes[:wanted]))
            if time.monotonic() > deadline:
                raise ClientsFailed(
                    f"{len(nodes)} of {wanted} nodes came within {_NODE_WAIT_S:g} s; start the "
                    "missing SuperNodes, or lower partition.clients"
                )
            time.sleep(_NODE_POLL_S)

    def _describe(self, grid: Grid) -> None:
        messages = [
            self._message(
                client,
                wire.DESCRIBE,
                wire.encode_describe_request(self.config, self.spec, client),
            )
            for client in self._nodes
        ]
        for client, content in self._good(self._exchange(grid, messages)).items():
            try:
                found = wire.decode_description(content, self.spec.num_classes)
            except WireError as error:
                self._fail(client, f"its description was refused: {error}")
                continue
            self.descriptions[client] = found
        for client in self._nodes:
            if client not in self.descriptions:
                self._fail(client, f"no answer within {self.config.federation.deadline_s:g} s")
        self._require_clients()

    def _plan(self) -> None:
        histograms = {client: found.histogram for client, found in self.descriptions.items()}
        try:
            self.plans = {
                ipc: slots.allocate(histograms, [ipc] * self.spec.num_classes)
                for ipc in self.config.distill.ipc
            }
        except LookupError as error:
            raise PartitionError(
                f"class '{self.spec.class_names[error.args[0]]}' is held by no client, so nobody "
                "can distil it; take the class out of the data set, or bring in a client with it"
            ) from error

    def _missing(self) -> Plan:
        """Return what each client still has to make, if anything.

        A client with no slot, as there are when N exceeds the images of a set, owes its teacher.
        """
        owed = {}
        for client, wanted in slots.largest(list(self.plans.values())).items():
            share = self.shares.get(client)
            have = share.counts if share else (0,) * len(wanted)
            counts = [max(0, want - has) for want, has in zip(wanted, have, strict=True)]
            if share is None or any(counts):
                owed[client] = counts
        return owed

    def _deal_again(self) -> None:
        """Give the slots of failed clients to the others.

        Raises:
            ClientsFailed: too few are left, or none that holds a class.
        """
        self._require_clients()
        alive = {
            client: found.histogram
            for client, found in self.descriptions.items()
            if client not in self.failures
        }
        for ipc, plan in self.plans.items():
            lost = [counts for client, counts in plan.items() if client in self.failures]
            kept = {client: counts for client, counts in plan.items() if client in alive}
            if not lost:
                continue
            wanted = [sum(column) for column in zip(*lost, strict=True)]
            try:
                self.plans[ipc] = slots.add(kept, slots.allocate(alive, wanted))
            except LookupError as error:
                raise ClientsFailed(
                    f"class '{self.spec.class_names[error.args[0]]}' is held only by clients that "
                    f"failed: {self._reasons()}; mend one of them and run again"
                ) from error

    def _require_clients(self) -> None:
        least = self.config.federation.min_clients
        good = len(self._nodes) - len(self.failures)
        if good < max(1, least):
            raise ClientsFailed(
                f"{good} of {len(self._nodes)} clients are left and federation.min_clients is "
                f"{least}; {self._reasons()}"
            )

    def _reasons(self) -> str:
        last_lines = {c: reason.strip().splitlines()[-1] for c, reason in self.failures.items()}
        return "; ".join(f"client {client}: {line}" for client, line in last_lines.items())

    def _message(self, client: int, message_type: str, content: RecordDict) -> Message:
        self.traffic.count(self.traffic.down, client, message_type, wire.size(content))
        return Message(
            content,
            dst_node_id=self._nodes[client],
            message_type=message_type,
            group_id=message_type,
            ttl=self.config.federation.deadline_s,
        )

    def _exchange(self, grid: Grid, messages: list[Message]) -> list[Message]:
        timeout = self.config.federation.deadline_s + _GRACE_S
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        client_of = {node: client for client, node in self._nodes.items()}
        # By message, not by sender: an error made by the SuperLink comes from its own id.
        for message in messages:
            metadata = message.metadata
            self._asked[metadata.message_id] = client_of[metadata.dst_node_id]
        return replies

    def _good(self, replies: Iterable[Message]) -> dict[int, RecordDict]:
        """Return the content of the good replies by partition id; note the failures.

        Raises:
            RunError: a worker of the simulation died, which makes further replies worthless.
        """
        good = {}
        for reply in replies:
            client = self._asked[reply.metadata.reply_to_message_id]
            if not reply.has_error():
                stage = reply.metadata.message_type
                self.traffic.count(self.traffic.up, client, stage, wire.size(reply.content))
                good[client] = reply.content
            elif reply.error.code == _UNKNOWN_ERROR:
                raise RunError(
                    f"the worker process of client {client} died ({reply.error.reason}); if the "
                    "machine ran out of memory, raise federation.cpus_per_client so that fewer "
                    "clients run at once, and run again"
                )
            else:
                self._fail(client, reply.error.reason or "no reason given")
        return dict(sorted(good.items()))

    def _fail(self, client: int, reason: str) -> None:
        if client in self.failures:
            return
        self.failures[client] = reason
        self.shares.pop(client, None)
        self.teachers.pop(client, None)
        log(WARNING, "client %s failed and is left out:\n%s", client, reason)


def _arrays(sets: Mapping[int, SyntheticSet]) -> ArrayRecord:
    arrays = {}
    for ipc, synthetic in sets.items():
        arrays[f"ipc-{ipc}/images"] = Array(synthetic.images.numpy())
        arrays[f"ipc-{ipc}/hard-labels"] = Array(synthetic.hard_labels.numpy())
        arrays[f"ipc-{ipc}/clients"] = Array(synthetic.clients.numpy())
        if synthetic.soft_labels is not None:
            arrays[f"ipc-{ipc}/teacher-logits"] = Array(synthetic.soft_labels.logits.numpy())
    return ArrayRecord(arrays)
