"""The images that a run is to make, and who owes which of them."""

from collections.abc import Mapping, Sequence

from fedistill import planning, slots
from fedistill.config import Config
from fedistill.errors import ClientsFailed, PartitionError
from fedistill.images import DataSpec
from fedistill.shares import Share
from fedistill.slots import Plan
from strategies.failures import Failures, last_lines


class Budget:
    """Deals the images of every set to clients, and deals anew what failed clients owe.

    Args:
        config: of the experiment.
        spec: of the data set.
        held: real images of each class, by partition id, of those who take part.
        failures: of those who do not.

    Attributes:
        plans: who makes how many images of which class, for each IPC.

    Raises:
        PartitionError: nobody holds a class.
        ClientsFailed: nobody who is left does.
    """

    def __init__(
        self,
        config: Config,
        spec: DataSpec,
        held: Mapping[int, Sequence[int]],
        failures: Failures,
    ) -> None:
        self._config = config
        self._spec = spec
        self._held = held
        self._failures = failures
        try:
            self.plans = planning.plans(config, spec, held)
        except PartitionError as error:
            raise self._short(error) from error

    def owed(self, shares: Mapping[int, Share]) -> Plan:
        """Return what each client still has to make, if anything.

        A client with no slot, as there are when N exceeds the images of a set, owes its teacher.

        Args:
            shares: what has arrived, by partition id.
        """
        owed = {}
        for client, wanted in planning.requests(self._config, self.plans).items():
            share = shares.get(client)
            have = share.counts if share else (0,) * len(wanted)
            counts = [max(0, want - has) for want, has in zip(wanted, have, strict=True)]
            if share is None or any(counts):
                owed[client] = counts
        return owed

    def deal_again(self) -> None:
        """Give the slots of failed clients to the others.

        Raises:
            ClientsFailed: none is left that holds a class.
        """
        for ipc, plan in self.plans.items():
            lost = [counts for client, counts in plan.items() if client in self._failures]
            kept = {n: counts for n, counts in plan.items() if n not in self._failures}
            if not lost:
                continue
            wanted = [sum(column) for column in zip(*lost, strict=True)]
            held = {client: self._held[client] for client in kept}
            try:
                more = planning.allocate(self._config, self._spec, held, wanted, kept)
            except PartitionError as error:
                raise self._short(error) from error
            self.plans[ipc] = slots.add(kept, more)

    def _short(self, error: PartitionError) -> Exception:
        if not self._failures:
            return error
        return ClientsFailed(
            f"the clients that are left cannot fill the set: {error}; failed: "
            f"{last_lines(self._failures)}; mend one of them and run again"
        )
