"""Jobs side by side: one for each core, the next made while they run."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from fakes import CPU

from fedistill.training import side_by_side


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_jobs_each_with_one_thread():
    second = threading.Event()

    def first() -> tuple[str, int]:
        assert second.wait(60), "the second job has not run beside the first"
        return "first", torch.get_num_threads()

    def other() -> tuple[str, int]:
        second.set()
        return "second", torch.get_num_threads()

    assert [*side_by_side([first, other], CPU)] == [("first", 1), ("second", 1)]
    assert torch.get_num_threads() == 2


def test_jobs_are_made_one_by_one_and_no_earlier_than_is_needed():
    ended: list[int] = []  # appended to by several threads at once
    waiting: list[int] = []

    def jobs() -> Iterator[Callable[[], int]]:
        for number in range(8):
            waiting.append(number + 1 - len(ended))
            yield lambda number=number: end(number)  # type: ignore[misc]

    def end(number: int) -> int:
        ended.append(number)
        return number

    assert [*side_by_side(jobs(), CPU)] == [*range(8)]
    assert max(waiting) <= 3  # two that run, and the next


@pytest.mark.parametrize("count", [1, 2])
def test_after_a_failure_no_more_jobs_are_made(count: int):
    torch.set_num_threads(count)
    made: list[int] = []

    def jobs() -> Iterator[Callable[[], None]]:
        for number in range(50):
            made.append(number)
            yield fail

    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        list(side_by_side(jobs(), CPU))
    assert len(made) <= count + 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_result_is_there_before_the_last_job_ends(count: int):
    torch.set_num_threads(count)
    received = threading.Event()

    def last() -> int:
        assert received.wait(60), "the first result has not come"
        return 2

    results = side_by_side([lambda: 1, last], CPU)
    assert next(results) == 1
    received.set()
    assert [*results] == [2]


def test_nothing_runs_before_a_result_is_asked_for():
    made: list[int] = []

    def jobs() -> Iterator[Callable[[], int]]:
        made.append(1)
        yield lambda: 1

    results = side_by_side(jobs(), CPU)
    assert made == []
    assert [*results] == [1]
