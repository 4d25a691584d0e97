"""Labels from home: the set goes to every client, logits come back, and teachers stay.

A client that does not answer as asked labels no more in this run; its images stay in the set.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedistill import wire_labels
from fedistill.answers import Sheet
from fedistill.config import Config
from fedistill.errors import ClientsFailed
from fedistill.images import DataSpec
from fedistill.wire_labels import LabelRequest
from strategies.exchange import Exchange
from strategies.failures import Failures, last_lines


class LabellersAtHome:
    """The clients that label.

    Args:
        config: of the experiment.
        spec: of the data set.
        exchange: to reach the clients.
        grid: the same.
        clients: partition ids that have a teacher.

    Attributes:
        failures: why a client labels no more, by partition id.
    """

    def __init__(
        self,
        config: Config,
        spec: DataSpec,
        exchange: Exchange,
        grid: Grid,
        clients: list[int],
    ) -> None:
        self._config = config
        self._spec = spec
        self._exchange = exchange
        self._grid = grid
        self._clients = sorted(clients)
        self.failures = Failures("labels no more")

    @property
    def left(self) -> list[int]:
        """Partition ids of those who still label, sorted."""
        return [client for client in self._clients if client not in self.failures]

    def ask(
        self,
        sheet: Sheet,
        asked: Mapping[int, Tensor],
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[int, Tensor]:
        """Ask clients for the labels of some views.

        Args:
            sheet: what there is to label.
            asked: which views are whose, bool [views, M], by partition id.
            report: called with clients that have answered, and all that were asked.

        Returns:
            Logits, float16 [number of these views, num_classes], of those who answered well.

        Raises:
            ClientsFailed: nobody is left to label.
        """
        requests = {
            client: LabelRequest(
                config=self._config,
                spec=self._spec,
                partition_id=client,
                images=sheet.images,
                seed=sheet.seed,
                options=sheet.options,
                mine=mine,
            )
            for client, mine in asked.items()
        }
        threads = torch.get_num_threads()
        try:
            answers = self._ask(requests)
        finally:
            torch.set_num_threads(threads)  # clients in this process have set their own
        if not self.left:
            raise ClientsFailed(
                "no client is left that labels, and relabel.at is clients; "
                f"{last_lines(self.failures)}; mend one of them and run again"
            )
        report(len(answers), len(requests))
        return answers

    def _ask(self, requests: Mapping[int, LabelRequest]) -> dict[int, Tensor]:
        # A client may have stopped to label since these were chosen.
        requests = {n: request for n, request in requests.items() if n not in self.failures}
        answers = self._exchange.ask(
            self._grid,
            wire_labels.LABEL,
            {n: wire_labels.encode_label_request(it) for n, it in requests.items()},
            lambda client, content: wire_labels.decode_answers(content, requests[client]),
            {n: wire_labels.largest(it) for n, it in requests.items()},
            self.failures.note,
        )
        return dict(sorted(answers, key=itemgetter(0)))
