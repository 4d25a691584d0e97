"""FedAvg, the rival, by Flower's own strategy on the clients of the run (McMahan et al. 2017).

The strategy is `flwr.serverapp.strategy.FedAvg` as it comes: it sends the global weights to all
nodes, and averages what comes back, BatchNorm statistics included, weighted by `num-examples`.
What it does not know stands between it and Flower's grid: which nodes are ours and which shard is
whose; that float sums repeat only in a fixed order; bytes; and replies that are not to be trusted.

All clients start from the same weights and train them with the teachers' recipe, whose learning
rate rises and falls in every round, so that one round is one-shot FedAvg.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from operator import itemgetter
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run
from torch import Tensor

from fedistill import rows, states, wire_fedavg
from fedistill.config import Config
from fedistill.cores import set_threads
from fedistill.errors import RunError, WireError, WorkerDied
from fedistill.evaluation import Evaluator
from fedistill.images import DataSpec
from fedistill.models import build
from fedistill.student import Score
from fedistill.training import accuracy, load_weights
from strategies.exchange import Exchange

Report = Callable[[str, int, int, str], None]


@dataclass
class Found:
    """What FedAvg came to.

    Attributes:
        top1: (round, accuracy of the average in percent).
        scores: of the rows, by name; the curve is the clients' mean loss over the rounds.
        notes: of the same rows: bytes up to that round, and who was absent from which round.
    """

    top1: list[tuple[int, float]] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)


def run(
    grid: Grid,
    nodes: Mapping[int, int],
    evaluator: Evaluator,
    report: Report,
    *,
    simulated: bool = True,
) -> Found:
    """Train by federated averaging, and test after every round.

    A client that fails is left out of that round's average, and asked again in the next. When
    fewer than `federation.min_clients` are left, the rows of later rounds are missing: a rival
    is no reason to lose a run.

    Args:
        grid: to reach the clients.
        nodes: node id of each partition id that takes part.
        evaluator: tests on its split.
        report: called with stage, rounds done, rounds in all, and a note.
        simulated: whether the clients are workers of a simulation; see `Exchange`.

    Raises:
        WorkerDied: a worker of the simulation died, which ends more than the rival.
    """
    config, spec, device = evaluator.config, evaluator.spec, evaluator.device
    rounds = config.fedavg.rounds
    model = build(config.teacher_model(0), spec, config.seed, "fedavg", "weights")
    ours = OurNodes(grid, config, spec, nodes, model.state_dict(), simulated)
    model.to(device)
    found, losses = Found(), list[tuple[int, float]]()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        set_threads()  # clients in this process have set their own
        load_weights(model, wire_fedavg.decode_weights(arrays))
        top1 = accuracy(model, evaluator.split, spec, evaluator.dtype)
        found.top1.append((server_round, top1))
        losses.append((server_round, ours.loss))
        name = rows.fedavg(server_round)
        if name in rows.names(config):
            found.scores[name] = Score([top1], [[*losses]])
            found.notes[name] = ours.notes()
        report("fedavg", server_round, rounds, f"top-1 {top1:.2f}")
        return MetricRecord({"top1": top1})

    report("fedavg", 0, rounds, "")
    strategy = FedAvg(min_train_nodes=1, min_available_nodes=1)
    strategy.fraction_evaluate = 0.0  # as an argument it would warn the user of our choice
    try:
        strategy.start(
            grid=ours,
            initial_arrays=states.encode(model.state_dict()),
            num_rounds=rounds,
            evaluate_fn=evaluate,
        )
    except WorkerDied:
        raise
    except RunError as error:
        log(WARNING, "fedavg ended before its last round, whose row is left out: %s", error)
        report("fedavg", rounds, rounds, "ended early")
    return found


class OurNodes(Grid):
    """A grid that shows FedAvg the nodes of one federation, and looks after what they say.

    Args:
        grid: Flower's.
        config: of the experiment.
        spec: of the data set.
        nodes: node id of each partition id.
        own: a state of the common network: what an update must look like.
        simulated: see `Exchange`.

    Attributes:
        exchange: bytes so far; not the run's own, which FedAvg is no part of.
        absent: partition ids that failed, by round.
        loss: mean over the clients of the latest round, weighted by their samples.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        spec: DataSpec,
        nodes: Mapping[int, int],
        own: Mapping[str, Tensor],
        simulated: bool,
    ) -> None:
        self.exchange = Exchange(config)
        self.exchange.simulated = simulated
        self.exchange.nodes = dict(nodes)
        self.absent: dict[int, list[int]] = {}
        self.loss = 0.0
        self._rounds = 0
        self._grid = grid
        self._config = config
        self._spec = spec
        self._own = {name: tensor.clone() for name, tensor in own.items()}

    def notes(self) -> dict[str, Any]:
        """Return what a row says of its costs, and of who was absent from which round."""
        absent = {str(number): clients for number, clients in self.absent.items()}
        return {
            "bytes": self.exchange.traffic.sums(),
            **({"absent_clients": absent} if absent else {}),
        }

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of our nodes alone."""
        return list(self.exchange.nodes.values())

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send FedAvg's messages, each with what its client must know; return the good replies.

        Args:
            messages: of one round.
            timeout: not used: `federation.deadline_s` is the limit.

        Returns:
            Replies that can be averaged, by partition id.

        Raises:
            ClientsFailed: fewer than `federation.min_clients`.
            WorkerDied: a worker of the simulation died.
        """
        asked = {message.metadata.dst_node_id: message.content for message in messages}
        if not asked:
            return []
        contents = {
            client: wire_fedavg.encode_train_request(self._config, self._spec, client, asked[node])
            for client, node in self.exchange.nodes.items()
            if node in asked
        }
        sent = self.exchange.messages(wire_fedavg.TRAIN, contents)
        most = dict.fromkeys(sent, wire_fedavg.largest(self._own))
        answers = self.exchange.replies(self._grid, sent, most)
        replies = dict(sorted(answers, key=itemgetter(0)))
        good = self._checked({client: reply.content for client, reply in replies.items()})
        self._end_round()
        return [replies[client] for client in good]

    def _checked(self, contents: Mapping[int, RecordDict]) -> list[int]:
        """Return the clients whose updates can be averaged; the others have failed."""
        losses = {}
        for client, content in contents.items():
            try:
                losses[client] = wire_fedavg.check_update(content, self._own)
            except WireError as error:
                self.exchange.fail(client, f"its update was refused: {error}")
        samples = sum(count for count, _ in losses.values())
        self.loss = sum(count * loss for count, loss in losses.values()) / max(1, samples)
        return list(losses)

    def _end_round(self) -> None:
        """Note who has failed in this round, and forget it for the next."""
        self._rounds += 1
        failures = self.exchange.failures
        if failures:
            self.absent[self._rounds] = sorted(failures)
        self.exchange.require_clients()
        failures.clear()

    @property
    def run(self) -> Run:
        """Flower's run."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self._grid.set_run(run)

    def create_message(self, *args: Any, **options: Any) -> Message:
        """Pass on."""
        return self._grid.create_message(*args, **options)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on; FedAvg sends and receives at once."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on; FedAvg sends and receives at once."""
        return self._grid.pull_messages(message_ids)
