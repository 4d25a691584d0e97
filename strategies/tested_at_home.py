"""Students tested by the devices, each on images that it has kept for that.

A device that does not answer as asked tests no more in this run.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import nn

from fedistill import wire_evaluate
from fedistill.config import Config, ModelConfig
from fedistill.counts import Counts, Pooled, pool
from fedistill.errors import ClientsFailed
from fedistill.images import DataSpec
from fedistill.wire import Description
from fedistill.wire_evaluate import EvaluateRequest
from strategies.exchange import Exchange
from strategies.failures import Failures, last_lines


def require_testers(descriptions: Mapping[int, Description]) -> None:
    """Refuse to go on where no device could test.

    Raises:
        ClientsFailed: none keeps images for tests.
    """
    if not any(found.held_out for found in descriptions.values()):
        raise ClientsFailed(
            "evaluate.at is clients, and no device keeps images for tests; give one a test split, "
            "or holdout in its node config, or set evaluate.at: server"
        )


class TestersAtHome:
    """The devices that test.

    Args:
        config: of the experiment.
        spec: of the data set.
        exchange: to reach the clients.
        grid: the same.
        descriptions: of the clients that take part, by partition id.

    Attributes:
        failures: why a client tests no more, by partition id.

    Raises:
        ClientsFailed: nobody can test.
    """

    __test__ = False  # pytest takes the name for one of its own

    def __init__(
        self,
        config: Config,
        spec: DataSpec,
        exchange: Exchange,
        grid: Grid,
        descriptions: Mapping[int, Description],
    ) -> None:
        require_testers(descriptions)
        self._config = config
        self._spec = spec
        self._exchange = exchange
        self._grid = grid
        self._held_out = {n: found.held_out for n, found in sorted(descriptions.items())}
        self.failures = Failures("tests no more")

    def test(self, model: ModelConfig, students: Sequence[nn.Module]) -> Pooled:
        """Let every device test some students.

        Args:
            model: the network of all of them.
            students: of one set, or of one row beside it: one for each seed.

        Returns:
            What those who answered well have found together.

        Raises:
            ClientsFailed: nobody did.
        """
        requests = {
            client: EvaluateRequest(
                config=self._config,
                spec=self._spec,
                partition_id=client,
                model=model,
                students=tuple(student.state_dict() for student in students),
            )
            for client, count in self._held_out.items()
            if count and client not in self.failures
        }
        threads = torch.get_num_threads()
        try:
            found = pool(self._ask(requests))
        finally:
            torch.set_num_threads(threads)  # clients in this process have set their own
        if found is None:
            raise ClientsFailed(
                f"no device is left that tests students; {last_lines(self.failures)}; mend one of "
                "them and run again"
            )
        return found

    def _ask(self, requests: Mapping[int, EvaluateRequest]) -> list[Counts]:
        def read(client: int, content: RecordDict) -> Counts:
            held_out = self._held_out[client]
            return wire_evaluate.decode_counts(content, requests[client], held_out)

        answers = self._exchange.ask(
            self._grid,
            wire_evaluate.EVALUATE,
            {n: wire_evaluate.encode_evaluate_request(it) for n, it in requests.items()},
            read,
            {n: wire_evaluate.largest(it) for n, it in requests.items()},
            self.failures.note,
        )
        return [counts for _, counts in sorted(answers, key=itemgetter(0))]
