"""Slots: the budget is exact, and dealt by the rule of fedistill/slots.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill import slots
from fedistill.slots import Plan

ipcs = st.integers(1, 12)
class_counts = st.integers(1, 10)


@st.composite
def uneven(draw: st.DrawFn) -> dict[int, list[int]]:
    """Clients that hold some of the classes; every class is held by somebody."""
    ids = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=8)))
    classes = draw(class_counts)
    counts = st.lists(st.integers(0, 3), min_size=classes, max_size=classes)
    held = {client: draw(counts) for client in ids}
    for label in range(classes):
        held[draw(st.sampled_from(ids))][label] += 1
    return held


def by_the_rule(held: dict[int, list[int]], wanted: list[int]) -> Plan:
    """Slot i = c * IPC + s to holder i mod n, written as one loop over all slots."""
    owners = [label for label, count in enumerate(wanted) for _ in range(count)]
    plan = {client: [0] * len(wanted) for client in held}
    for i, label in enumerate(owners):
        holders = sorted(client for client, counts in held.items() if counts[label])
        plan[holders[i % len(holders)]][label] += 1
    return plan


@given(held=uneven(), ipc=ipcs)
def test_every_class_gets_exactly_its_budget(held, ipc):
    classes = len(next(iter(held.values())))
    plan = slots.allocate(held, [ipc] * classes)
    assert plan.keys() == held.keys()
    assert [sum(column) for column in zip(*plan.values(), strict=True)] == [ipc] * classes


@given(held=uneven(), data=st.data())
def test_slots_are_dealt_by_the_rule(held, data):
    classes = len(next(iter(held.values())))
    wanted = data.draw(st.lists(st.integers(0, 6), min_size=classes, max_size=classes))
    assert slots.allocate(held, wanted) == by_the_rule(held, wanted)


@given(held=uneven(), ipc=ipcs)
def test_nobody_makes_a_class_that_it_does_not_hold(held, ipc):
    plan = slots.allocate(held, [ipc] * len(next(iter(held.values()))))
    for client, counts in plan.items():
        assert all(held[client][label] for label, count in enumerate(counts) if count)


@given(clients=st.integers(1, 30), classes=class_counts, ipc=ipcs)
def test_clients_that_hold_everything_share_alike(clients, classes, ipc):
    plan = slots.allocate({n: [1] * classes for n in range(clients)}, [ipc] * classes)
    totals = [sum(counts) for counts in plan.values()]
    assert max(totals) - min(totals) <= 1
    for label in range(classes):
        column = [counts[label] for counts in plan.values()]
        assert max(column) - min(column) <= 1  # distinct clients while IPC <= N


@given(held=uneven(), ipc=ipcs)
def test_the_order_of_the_clients_does_not_matter(held, ipc):
    wanted = [ipc] * len(next(iter(held.values())))
    backwards = dict(reversed(held.items()))
    assert slots.allocate(backwards, wanted) == slots.allocate(held, wanted)


def test_more_clients_than_images_leave_some_without_work():
    plan = slots.allocate({client: [5, 5] for client in range(5)}, [1, 1])
    assert plan == {0: [1, 0], 1: [0, 1], 2: [0, 0], 3: [0, 0], 4: [0, 0]}


def test_the_remainder_moves_on_from_class_to_class():
    plan = slots.allocate({client: [9] * 3 for client in range(3)}, [4] * 3)
    assert plan == {0: [2, 1, 1], 1: [1, 2, 1], 2: [1, 1, 2]}


def test_a_class_that_nobody_holds_is_named():
    with pytest.raises(LookupError) as raised:
        slots.allocate({0: [3, 0, 1], 1: [1, 0, 0]}, [1, 1, 1])
    assert raised.value.args == (1, 0)
    assert slots.allocate({0: [3, 0]}, [2, 0]) == {0: [2, 0]}


def test_plans_add_up_also_when_clients_differ():
    assert slots.add({2: [1, 0], 0: [1, 1]}, {2: [0, 3], 5: [4, 4]}) == {
        0: [1, 1],
        2: [1, 3],
        5: [4, 4],
    }


@given(held=uneven(), sizes=st.sets(ipcs, min_size=1, max_size=4))
def test_the_largest_plan_serves_each_of_them(held, sizes):
    classes = len(next(iter(held.values())))
    plans = [slots.allocate(held, [ipc] * classes) for ipc in sorted(sizes)]
    largest = slots.largest(plans)
    for client, counts in largest.items():
        columns = zip(counts, *(plan[client] for plan in plans), strict=True)
        assert all(most == max(others) for most, *others in columns)


@given(held=uneven(), ipc=ipcs, needed=st.integers(1, 4))
def test_nobody_is_asked_for_more_than_its_images_allow(held, ipc, needed):
    classes = len(next(iter(held.values())))
    room = [sum(counts[label] // needed for counts in held.values()) for label in range(classes)]
    if min(room) < ipc:
        with pytest.raises(LookupError) as raised:
            slots.allocate(held, [ipc] * classes, needed)
        label, possible = raised.value.args
        assert possible == room[label] < ipc
        return
    plan = slots.allocate(held, [ipc] * classes, needed)
    assert [sum(column) for column in zip(*plan.values(), strict=True)] == [ipc] * classes
    for client, counts in plan.items():
        assert all(made * needed <= has for made, has in zip(counts, held[client], strict=True)), (
            client
        )


@given(held=uneven(), data=st.data(), needed=st.integers(0, 4))
def test_slots_by_histogram_are_exact_and_fit(held, data, needed):
    classes = len(next(iter(held.values())))
    room = [
        sum(counts[label] // needed if needed else 99 for counts in held.values())
        for label in range(classes)
    ]
    wanted = [data.draw(st.integers(0, min(12, most))) for most in room]
    plan = slots.allocate_by_histogram(held, wanted, needed)
    assert list(plan) == sorted(held)
    assert [sum(column) for column in zip(*plan.values(), strict=True)] == wanted
    for client, counts in plan.items():
        for made, has in zip(counts, held[client], strict=True):
            assert 0 <= made * needed <= has
            assert has > 0 or made == 0


@given(held=uneven(), ipc=ipcs, scale=st.sampled_from([1, 7, 100]))
def test_slots_by_histogram_are_proportional_within_one(held, ipc, scale):
    held = {client: [scale * count for count in counts] for client, counts in held.items()}
    classes = len(next(iter(held.values())))
    plan = slots.allocate_by_histogram(held, [ipc] * classes)
    for label in range(classes):
        whole = sum(counts[label] for counts in held.values())
        for client, counts in plan.items():
            assert abs(counts[label] - ipc * held[client][label] / whole) < 1


@given(clients=st.integers(1, 30), classes=class_counts, ipc=ipcs, count=st.integers(1, 500))
def test_equal_histograms_share_alike_by_histogram_too(clients, classes, ipc, count):
    held = {n: [count] * classes for n in range(clients)}
    plan = slots.allocate_by_histogram(held, [ipc] * classes)
    totals = [sum(counts) for counts in plan.values()]
    assert max(totals) - min(totals) <= 1
    for column in zip(*plan.values(), strict=True):
        assert max(column) - min(column) <= 1


@given(held=uneven(), ipc=ipcs)
def test_slots_by_histogram_do_not_depend_on_the_order_of_the_clients(held, ipc):
    wanted = [ipc] * len(next(iter(held.values())))
    backwards = dict(reversed(held.items()))
    assert slots.allocate_by_histogram(backwards, wanted) == slots.allocate_by_histogram(
        held, wanted
    )


def test_an_image_more_does_not_win_the_slot_of_every_class():
    held = {0: [181] * 10, 1: [180] * 10, 2: [180] * 10, 3: [179] * 10}
    totals = [sum(counts) for counts in slots.allocate_by_histogram(held, [1] * 10).values()]
    assert sorted(totals) == [2, 2, 3, 3]


def test_who_knows_a_class_best_makes_it():
    held = {0: [90, 5], 1: [10, 95]}
    assert slots.allocate_by_histogram(held, [1, 1]) == {0: [1, 0], 1: [0, 1]}
    assert slots.allocate_by_histogram(held, [10, 10]) == {0: [9, 1], 1: [1, 9]}
    assert slots.allocate_by_histogram({0: [3], 1: [1]}, [2]) == {0: [2], 1: [0]}


def test_what_has_no_room_for_an_image_leaves_the_slots_to_others():
    """The whole of quotas 5.5 fits; of the five slots left none fits at a holder of 9 images."""
    held = {0: [100], **{client: [9] for client in range(1, 10)}}
    assert slots.allocate_by_histogram(held, [10], 10)[0] == [10]
    with pytest.raises(LookupError) as raised:
        slots.allocate_by_histogram(held, [11], 10)
    assert raised.value.args == (0, 10)
