import re

import pytest

from fedistill.wire import Description
from strategies.roll_call import identity, number


def device(partition_id: int = -1, name: str = "") -> Description:
    return Description(partition_id, [1, 2], {}, name=name)


def test_claimed_places_are_kept_and_the_others_go_by_name_then_node():
    found = {30: device(1), 10: device(name="b"), 40: device(), 20: device(name="a")}
    roll = number(found, 4)
    # Nameless ones come first, as an empty name sorts; 1 is taken.
    assert roll.nodes == {0: 40, 1: 30, 2: 20, 3: 10}
    assert list(roll.descriptions) == [0, 1, 2, 3]
    assert roll.refused == {}


def test_the_order_of_arrival_does_not_matter():
    found = {n: device(name=name) for n, name in ((7, "x"), (3, "y"), (5, "z"))}
    backwards = dict(reversed(found.items()))
    assert number(found, 3).nodes == number(backwards, 3).nodes == {0: 7, 1: 3, 2: 5}


@pytest.mark.parametrize(
    ("found", "clients", "refused", "words"),
    [
        ({1: device(5), 2: device(0)}, 2, 1, r"partition-id is 5 .* accepted: 0 to 1"),
        ({1: device(0), 2: device(0)}, 2, 2, r"another node \(1\) has its id 0"),
        ({1: device(name="a"), 2: device(name="a")}, 2, 2, "has its name a"),
        ({1: device(name="a"), 2: device(name="b")}, 1, 2, r"partition\.clients is 1"),
    ],
)
def test_who_has_no_place_is_told_why(found, clients, refused, words):
    roll = number(found, clients)
    assert list(roll.refused) == [refused]
    assert re.search(words, roll.refused[refused])
    assert refused not in roll.nodes.values()


def test_after_a_restart_everybody_has_their_number_again():
    found = {1: device(name="a"), 2: device(name="b"), 3: device()}
    first = number(found, 3)
    known = {n: identity(it, first.nodes[n]) for n, it in first.descriptions.items()}
    # New node ids, except where the id is all there is; one has not come back, one is new.
    later = {9: device(name="b"), 3: device(), 4: device(name="c")}
    again = number(later, 3, known)
    assert again.nodes == {n: {"b": 9, "": 3}[first.descriptions[n].name] for n in again.nodes}
    assert {first.descriptions[n].name for n in again.nodes} == {"b", ""}
    assert "begun without it" in again.refused[4]


def test_when_a_failed_run_is_repeated_others_take_the_places_of_those_who_are_gone():
    known = {0: "name b", 1: "name d"}
    found = {1: device(name="a"), 2: device(name="b"), 3: device(name="c")}
    roll = number(found, 4, known, closed=False)
    assert roll.nodes == {0: 2, 1: 1, 2: 3}
    assert roll.refused == {}


@pytest.mark.parametrize("pretender", [0, 99])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("said", [device(name="a"), device(0), device(0, name="a")])
def test_nobody_takes_the_place_of_a_node_that_is_there(said, closed: bool, pretender: int):
    known, nodes = {0: "name a", 1: "id 1"}, {0: 50, 1: 60}
    found = {50: device(name="a"), 60: device(1), pretender: said}
    roll = number(found, 3, known, closed, nodes)
    assert roll.nodes == {0: 50, 1: 60}
    assert re.search(
        r"its (name a|id 0) is the place of another node \(50\)", roll.refused[pretender]
    )


def test_two_that_claim_one_number_are_told_apart_by_who_had_it():
    found = {9: device(1), 60: device(1)}
    assert number(found, 2, {1: "id 1"}, False, {1: 60}).nodes == {1: 60}


def test_a_place_is_free_when_its_node_has_gone_or_calls_itself_otherwise():
    for found in (
        {70: device(name="a")},  # a SuperNode without a key has a new id whenever it starts
        {50: device(name="b"), 70: device(name="a")},
    ):
        roll = number(found, 2, {0: "name a"}, False, {0: 50})
        assert roll.nodes[0] == 70
        assert roll.refused == {}


def test_a_claim_goes_before_what_was_known():
    known = {0: "name a", 1: "name b"}
    roll = number({1: device(name="a"), 2: device(0)}, 2, known, closed=False)
    assert roll.nodes == {0: 2, 1: 1}
