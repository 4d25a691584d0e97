"""That the lines of a chart in MLflow have colours of their own."""

from itertools import combinations
from math import dist

import pytest

from fedistill.mlflow_colours import colour, told_apart

SIZES = (1, 2, 3, 5, 7, 10, 20, 30, 50)
NAMES = [f"IPC {ipc:03d}" for ipc in SIZES]
SPLITS = [f"IPC {ipc:03d}, {split}" for ipc in (1, 3) for split in ("alpha 0.5", "iid")]


def test_colours_are_those_that_mlflow_was_seen_to_give():
    """Read off a screenshot of version 3.17."""
    assert colour("line", "IPC 001, iid") == colour("line", "IPC 003, iid") == (39, 124, 67)
    assert colour("line", "IPC 001, alpha 0.5") == (59, 166, 94)


@pytest.mark.parametrize(("names", "apart"), [(NAMES, 70), (SPLITS, 110)], ids=["sizes", "splits"])
def test_lines_have_colours_of_their_own(names: list[str], apart: float):
    found = told_apart("line", names)
    assert [name.rstrip() for name in found.values()] == names == [*found]
    colours = [colour("line", value) for value in found.values()]
    assert min(dist(*pair) for pair in combinations(colours, 2)) >= apart
    assert min(dist(it, (255, 255, 255)) for it in colours) >= 150
    assert told_apart("line", names) == found


def test_more_lines_than_colours_keep_their_names():
    names = [f"method {n}" for n in range(60)]
    found = told_apart("line", names)
    assert len({*found.values()}) == len(names)
    assert len({colour("line", value) for value in found.values()}) > 15
