"""Who makes which images: exactly IPC images of every class, whatever the number of clients.

Slot i = c * IPC + s (class c, place s) goes to client i mod n among the n clients that hold
class c. Totals of clients that hold everything differ by at most one,
and within a class clients are distinct while IPC <= n. IPC is never rounded up to a multiple
of the number of clients: the budget would grow. Where an image is made of real images of its
own, a client that has used up those of a class leaves the n.
"""

from collections.abc import Mapping, Sequence

Plan = dict[int, list[int]]


def allocate(
    histograms: Mapping[int, Sequence[int]], wanted: Sequence[int], real_per_image: int = 0
) -> Plan:
    """Deal slots to the clients.

    Args:
        histograms: for each partition id, how many real images of each class it holds.
        wanted: images wanted of each class: `[ipc] * num_classes` for a whole set, less when
            only the slots of clients that failed are dealt again.
        real_per_image: different real images that one image is made of: a client gets no more
            slots of a class than its images allow. 0: no limit.

    Returns:
        For each partition id, how many images of each class it makes.

    Raises:
        LookupError: a class is wanted that nobody holds, or not often enough; the arguments are
            the class of which most are missing, and how many images of it can be made.
    """
    rooms = [
        {
            client: held[label] // real_per_image if real_per_image else count
            for client, held in sorted(histograms.items())
            if held[label] > 0
        }
        for label, count in enumerate(wanted)
    ]
    possible = [sum(room.values()) for room in rooms]
    missing = [count - most for count, most in zip(wanted, possible, strict=True)]
    if max(missing, default=0) > 0:
        scarcest = missing.index(max(missing))
        raise LookupError(scarcest, possible[scarcest])
    plan = {client: [0] * len(wanted) for client in sorted(histograms)}
    slot = 0
    for label, (count, room) in enumerate(zip(wanted, rooms, strict=True)):
        for _ in range(count):
            holders = [client for client in room if room[client] > 0]
            chosen = holders[slot % len(holders)]
            plan[chosen][label] += 1
            room[chosen] -= 1
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


def end_to_end(plans: Sequence[Plan]) -> Plan:
    """Return what each client must make where every plan has images of its own.

    Returns:
        For each partition id, the counts of the first plan, then those of the second, and so on:
        [number of plans * number of classes].
    """
    return {client: [count for plan in plans for count in plan[client]] for client in plans[0]}
