"""The paper's two findings, held against made-up numbers."""

import pytest

from fedistill import published
from fedistill.comparison import Line, Point
from fedistill.findings import best, check


def curves(cells, std=0.1, n=3):
    """Turn {ipc: {clients: mean}} into lines."""
    return {
        Line("sre2l", None, ipc): {clients: Point(mean, std, n) for clients, mean in row.items()}
        for ipc, row in cells.items()
    }


def best_clients(cells, **options):
    return check(curves(cells, **options), {})[0]


def below(cells, teachers, **options):
    return check(curves(cells, **options), teachers)[1]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_paper_agrees_with_itself(name):
    table = published.TABLES[name]
    cells = {ipc: dict(enumerate(row, start=1)) for ipc, row in table.rows.items()}
    teachers = dict(enumerate(table.teachers, start=1))
    finding, second = check(curves(cells, std=0.0), teachers)
    assert (finding.verdict, second.verdict) == ("agrees", "agrees")
    first, *_, last = sorted(cells)
    winners = {"cifar10": (15, 4), "cifar100": (10, 2)}[name]
    assert f"N = {winners[0]} at IPC {first}" in finding.text
    assert f"N = {winners[1]} at IPC {last}" in finding.text


def test_the_smallest_of_equally_good_numbers_is_the_best():
    assert best({1: Point(3, 0, 1), 2: Point(5, 0, 1), 3: Point(5, 0, 1)}) == 2


def test_a_best_number_that_rises_differs():
    finding = best_clients({1: {1: 9, 2: 5, 3: 4}, 10: {1: 4, 2: 5, 3: 9}})
    assert finding.verdict == "differs"
    assert finding.text.startswith("It does not fall: N = 1 at IPC 1, N = 3 at IPC 10.")
    assert "3 is the most clients that were tried, so the best at IPC 10" in finding.text


def test_the_same_best_number_everywhere_differs():
    finding = best_clients({1: {1: 4, 2: 9, 3: 5}, 10: {1: 4, 2: 9, 3: 5}}, std=0.0)
    assert "the same at every IPC" in finding.text
    # A number that is the best everywhere falls with no IPC, and noise could not show it.
    assert finding.verdict == "open"


def test_a_fall_with_a_step_back_is_open():
    cells = {1: {1: 1, 2: 2, 3: 9}, 10: {1: 9, 2: 2, 3: 1}, 50: {1: 1, 2: 9, 3: 2}}
    finding = best_clients(cells)
    assert (finding.verdict, "not at every step" in finding.text) == ("open", True)


def test_a_fall_within_the_noise_is_open():
    cells = {1: {1: 8.9, 2: 5, 3: 9}, 10: {1: 9, 2: 5, 3: 8.9}}
    assert best_clients(cells, std=0.01).verdict == "agrees"
    finding = best_clients(cells, std=0.5)
    assert finding.verdict == "open"
    assert "within the noise" in finding.text
    assert "1, 3 at IPC 1; 1, 3 at IPC 10" in finding.text


def test_single_students_decide_nothing():
    finding = best_clients({1: {1: 1, 2: 2, 3: 9}, 10: {1: 9, 2: 2, 3: 1}}, n=1)
    assert (finding.verdict, "one student alone" in finding.text) == ("open", True)


@pytest.mark.parametrize(
    "cells",
    [
        {1: {1: 1, 2: 2, 3: 3}},
        {1: {1: 1, 2: 2}, 10: {1: 1, 2: 2}},
        {1: {1: 1, 2: 2, 3: 3}, 10: {3: 3, 4: 4, 5: 5}},
    ],
)
def test_too_few_cells_are_too_little_to_tell(cells):
    finding = best_clients(cells)
    assert (finding.verdict, finding.text[:18]) == ("open", "Too little to tell")


def test_a_number_of_clients_that_one_ipc_lacks_does_not_count():
    """N = 9 would win at IPC 1; IPC 10 never tried it."""
    finding = best_clients({1: {1: 1, 2: 2, 3: 5, 9: 99}, 10: {1: 9, 2: 2, 3: 1}})
    assert "N = 3 at IPC 1, N = 1 at IPC 10" in finding.text


def test_below_the_teachers():
    finding = below({1: {1: 50, 2: 60}}, {1: 90, 2: 62.5})
    assert finding.verdict == "agrees"
    assert finding.text == "It does in all 2 cells; the nearest is 2.50 points below."


def test_above_the_teachers():
    finding = below({1: {1: 50, 2: 60}}, {1: 90, 2: 55})
    assert finding.verdict == "differs"
    assert finding.text == "It does not in 1 of 2 cells: N = 2 at IPC 1: 60.00 against 55.00."


def test_a_few_cells_above_the_teachers_are_named():
    row = dict.fromkeys(range(1, 21), 50.0)
    finding = below({1: {**row, 7: 80.0}}, dict.fromkeys(row, 70.0))
    assert finding.verdict == "agrees"
    assert finding.text.endswith("above. Here: N = 7 at IPC 1: 80.00 against 70.00.")


def test_above_the_teachers_by_less_than_the_noise():
    finding = below({1: {1: 50, 2: 60}}, {1: 90, 2: 59}, std=2.0)
    assert (finding.verdict, "within one standard deviation" in finding.text) == ("open", True)


def test_one_student_alone_above_the_teachers_decides_nothing():
    finding = below({1: {1: 50, 2: 60}}, {1: 90, 2: 55}, n=1)
    assert (finding.verdict, "the noise is not known" in finding.text) == ("open", True)


def test_teachers_that_were_not_tested():
    assert below({1: {1: 50}}, {}).verdict == "open"
    assert below({1: {1: 50, 2: 60}}, {2: 70}).text.startswith("It does in all 1 cell;")
