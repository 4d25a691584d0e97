"""Who makes which images: exactly IPC images of every class, whatever the number of clients.

Slot i = c * IPC + s (class c, place s) goes to client i mod n among the n clients that hold
class c. Totals of clients that hold everything differ by at most one,
and within a class clients are distinct while IPC <= n. IPC is never rounded up to a multiple
of the number of clients: the budget would grow.
"""

from collections.abc import Mapping, Sequence

Plan = dict[int, list[int]]


def allocate(histograms: Mapping[int, Sequence[int]], wanted: Sequence[int]) -> Plan:
    """Deal slots to the clients.

    Args:
        histograms: for each partition id, how many real images of each class it holds.
        wanted: images wanted of each class: `[ipc] * num_classes` for a whole set, less when
            only the slots of clients that failed are dealt again.

    Returns:
        For each partition id, how many images of each class it makes.

    Raises:
        LookupError: a class is wanted that nobody holds; its argument is the class.
    """
    plan = {client: [0] * len(wanted) for client in sorted(histograms)}
    slot = 0
    for label, count in enumerate(wanted):
        holders = [client for client in plan if histograms[client][label] > 0]
        if count and not holders:
            raise LookupError(label)
        for _ in range(count):
            plan[holders[slot % len(holders)]][label] += 1
            slot += 1
    return plan


def add(first: Plan, second: Plan) -> Plan:
    """Add two plans, client by client and class by class."""
    clients = sorted({*first, *second})
    width = len(next(iter([*first.values(), *second.values()])))
    zeros = [0] * width
    return {
        client: [
            a + b for a, b in zip(first.get(client, zeros), second.get(client, zeros), strict=True)
        ]
        for client in clients
    }


def largest(plans: Sequence[Plan]) -> Plan:
    """Return what each client must make so that every plan can be served from its images."""
    return {
        client: [max(counts) for counts in zip(*(plan[client] for plan in plans), strict=True)]
        for client in plans[0]
    }
