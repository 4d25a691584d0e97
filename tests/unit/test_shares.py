"""Shares and their union."""

from dataclasses import replace
from itertools import pairwise

import torch
from fakes import tiny_spec

from fedistill import slots
from fedistill.shares import Share, integrate

SPEC = tiny_spec()


def share(partition_id: int, counts: list[int], first: int = 0) -> Share:
    """A share whose images say who made them: client, class, and which of the class."""
    images = torch.zeros(sum(counts), 1, 8, 8, dtype=torch.uint8)
    rows = [(label, i) for label, count in enumerate(counts) for i in range(count)]
    for image, (label, i) in zip(images, rows, strict=True):
        image[0, 0, :3] = torch.tensor([partition_id, label, first + i])
    return Share(
        partition_id=partition_id,
        images=images,
        counts=tuple(counts),
        seconds={"squeeze": 1.0, "recover": 2.0},
    )


def marks(images: torch.Tensor) -> list[list[int]]:
    return images[:, 0, 0, :3].tolist()


HELD = {0: [5, 5, 5], 1: [5, 5, 0], 4: [0, 5, 5]}
PLANS = {ipc: slots.allocate(HELD, [ipc] * 3) for ipc in (1, 2, 5)}
LARGEST = slots.largest(list(PLANS.values()))
SHARES = [share(client, counts) for client, counts in LARGEST.items()]


def test_the_union_is_ordered_by_class_and_within_a_class_by_client():
    united = integrate(SHARES, PLANS[5], SPEC)
    assert united.hard_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    found = marks(united.images)
    assert found == sorted(found, key=lambda mark: (mark[1], mark[0], mark[2]))
    assert [mark[0] for mark in found] == united.clients.tolist()
    assert [mark[1] for mark in found] == united.hard_labels.tolist()
    for client, counts in PLANS[5].items():
        of_client = united.hard_labels[united.clients == client]
        assert torch.bincount(of_client, minlength=3).tolist() == counts


def test_the_union_does_not_depend_on_the_order_of_the_shares():
    united = integrate(SHARES, PLANS[5], SPEC)
    for order in ([2, 1, 0], [1, 2, 0]):
        assert integrate([SHARES[i] for i in order], PLANS[5], SPEC).sha256 == united.sha256


def test_a_small_set_takes_the_first_images_that_each_client_made():
    # Who makes an image depends on the IPC; of what one client made, the first ones count.
    for plan in PLANS.values():
        for client, label, place in marks(integrate(SHARES, plan, SPEC).images):
            assert place < plan[client][label]


def test_with_one_client_small_sets_are_part_of_larger_ones():
    shares = [share(0, [5, 5, 5])]
    sets = [marks(integrate(shares, {0: [ipc] * 3}, SPEC).images) for ipc in (1, 2, 5)]
    for small, large in pairwise(sets):
        assert all(mark in large for mark in small)
        assert len(large) > len(small)


def test_a_client_that_is_not_in_the_plan_adds_nothing():
    united = integrate([*SHARES, share(7, [3, 3, 3])], PLANS[2], SPEC)
    assert 7 not in united.clients
    assert len(united) == 6


def test_images_made_later_come_after_the_first_ones_of_their_class():
    both = share(3, [2, 0, 1]).extended(share(3, [1, 2, 0], first=10))
    assert both.counts == (3, 2, 1)
    assert marks(both.images) == [
        [3, 0, 0], [3, 0, 1], [3, 0, 10],
        [3, 1, 10], [3, 1, 11],
        [3, 2, 0],
    ]  # fmt: skip
    assert both.seconds == {"squeeze": 2.0, "recover": 4.0}
    assert both.entry(1).shape == (2, 1, 8, 8)


def test_a_teacher_found_again_is_told_of_once():
    first = replace(share(3, [1, 0, 0]), from_store=("recover",))
    more = replace(share(3, [1, 0, 0]), from_store=("squeeze", "recover"))
    both = first.extended(more)
    assert both.seconds == {"squeeze": 1.0, "recover": 4.0}
    assert both.from_store == ("recover",)


def test_extending_keeps_the_set_that_was_there():
    plan = {0: [1, 1, 1], 1: [0, 1, 1]}
    first = [share(0, [1, 1, 1]), share(1, [0, 1, 1])]
    later = [first[0].extended(share(0, [2, 0, 0], first=10)), first[1]]
    assert integrate(later, plan, SPEC).sha256 == integrate(first, plan, SPEC).sha256


def test_sets_with_images_of_their_own_are_rows_of_a_share():
    plans = [PLANS[1], PLANS[2]]
    asked = slots.end_to_end(plans)
    assert all(len(counts) == 2 * 3 for counts in asked.values())
    shares = [share(client, counts) for client, counts in asked.items()]
    for row, plan in enumerate(plans):
        united = integrate(shares, plan, SPEC, row)
        assert torch.bincount(united.hard_labels, minlength=3).tolist() == [row + 1] * 3
        for (client, entry, place), label in zip(
            marks(united.images), united.hard_labels.tolist(), strict=True
        ):
            assert entry == row * 3 + label  # of `counts`, so of this row's images
            assert place < plan[client][label]
