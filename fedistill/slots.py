"""Who makes which images: exactly IPC images of every class, whatever the number of clients.

even        slot i = c * IPC + s (class c, place s) goes to client i mod n among the n clients
            that hold class c. Totals of clients that hold everything differ by at most one, and
            within a class clients are distinct while IPC <= n.
histogram   the slots of a class go to its holders in proportion to how many real images of it
            each holds: where shards differ, the client that knows a class best makes most of it.

IPC is never rounded up to a multiple of the number of clients: the budget would grow. Where an
image is made of real images of its own, a client that has used up those of a class gets no more.
"""

from collections.abc import Callable, Mapping, Sequence

Plan = dict[int, list[int]]
Rule = Callable[[Mapping[int, Sequence[int]], Sequence[int], int], Plan]

_ALIKE = 0.5  # remainders of at least this share of the largest one are alike; our choice


def allocate(
    histograms: Mapping[int, Sequence[int]], wanted: Sequence[int], real_per_image: int = 0
) -> Plan:
    """Deal slots evenly.

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
    plan = {client: [0] * len(wanted) for client in sorted(histograms)}
    slot = 0
    rooms = _rooms(histograms, wanted, real_per_image)
    for label, (count, room) in enumerate(zip(wanted, rooms, strict=True)):
        for _ in range(count):
            holders = [client for client in room if room[client] > 0]
            chosen = holders[slot % len(holders)]
            plan[chosen][label] += 1
            room[chosen] -= 1
            slot += 1
    return plan


def allocate_by_histogram(
    histograms: Mapping[int, Sequence[int]], wanted: Sequence[int], real_per_image: int = 0
) -> Plan:
    """Deal slots by how many real images of each class a client holds.

    The largest-remainder method (Hamilton's), class by class: everyone gets the whole part of its
    quota, and what is left goes to the largest remainders. Of remainders that are alike, the one
    of the client that is furthest behind its quotas of the classes so far comes first: with
    shards that differ by an image or two, one client would otherwise get the slot that is left
    of every class. Equal histograms thus give totals that differ by at most one.

    Args, returns and raises: see `allocate`.
    """
    plan = {client: [0] * len(wanted) for client in sorted(histograms)}
    behind = dict.fromkeys(plan, 0.0)
    rooms = _rooms(histograms, wanted, real_per_image)
    for label, (count, room) in enumerate(zip(wanted, rooms, strict=True)):
        if not count:
            continue
        held = {client: histograms[client][label] for client in room}
        whole = sum(held.values())
        # In units of 1 / whole of a slot, so that ties are ties. The whole part of a quota always
        # fits: count <= the sum of held // real_per_image.
        dealt = {client: count * held[client] // whole for client in room}
        owed = {client: count * held[client] % whole for client in room}
        for _ in range(count - sum(dealt.values())):
            free = [client for client in room if dealt[client] < room[client]]
            most = max(owed[client] for client in free)
            alike = [c for c in free if owed[c] >= min(most, _ALIKE * most)]
            # Rounded: sums that differ in their order only are ties.
            chosen = max(alike, key=lambda c: (round(behind[c] + owed[c] / whole, 6), -c))
            dealt[chosen] += 1
            owed[chosen] -= whole
        for client, made in dealt.items():
            plan[client][label] = made
            behind[client] += owed[client] / whole
    return plan


# By the values of `federation.slots`.
RULES: Mapping[str, Rule] = {"even": allocate, "histogram": allocate_by_histogram}


def _rooms(
    histograms: Mapping[int, Sequence[int]], wanted: Sequence[int], real_per_image: int
) -> list[dict[int, int]]:
    """Return how many images of each class every client that holds it can make at most.

    Raises:
        LookupError: see `allocate`.
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
    return rooms


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
