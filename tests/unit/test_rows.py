"""What the rows beside a set are called."""

from typing import Any, get_args

import pytest
from fakes import tiny_config

from fedistill import rows
from fedistill.config import Baseline


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(1, ["fedavg_1"]), (2, ["fedavg_1", "fedavg_2"]), (12, ["fedavg_1", "fedavg_12"])],
)
def test_fedavg_has_a_row_after_its_first_and_its_last_round(rounds: int, expected: list[str]):
    config = tiny_config(baselines=["random", "fedavg", "ensemble"], fedavg={"rounds": rounds})
    assert rows.names(config) == ["random", *expected, "ensemble"]


def test_without_baselines_there_are_no_rows():
    assert rows.names(tiny_config()) == []


def test_every_row_is_readable():
    everything: Any = list(get_args(Baseline))
    for name in rows.names(tiny_config(baselines=everything)):
        assert "_" not in rows.title(name)
        assert "_" not in rows.short(name)
        assert len(rows.short(name)) <= 20
    assert rows.title("fedavg_1") == "FedAvg, 1 round"
    assert rows.short("fedavg_12") == "FedAvg, 12 rounds"
    assert rows.title("of_another_version") == "of another version"


def test_a_result_says_what_it_was_tested_on():
    assert rows.tested_on("test") == "the whole test split"
    assert rows.tested_on("validation") == "the whole validation split"
    assert rows.tested_on("clients") == "the devices' own images"
