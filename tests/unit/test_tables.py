"""What the commands print."""

from pathlib import Path

import pytest
from fakes import tiny_set

from fedistill import tables


@pytest.mark.parametrize(
    ("distill", "count", "shown"),
    [
        ({"name": "sre2l", "iterations": 200}, 3, ("sre2l (200 iterations)", "50.0 +- 1.5 (n=3)")),
        ({"name": "random"}, 1, ("random ", "50.0 (n=1)")),
    ],
)
def test_a_set_tells_its_method_and_its_score(
    distill: dict[str, object],
    count: int,
    shown: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
):
    score = {"convnet": {"top1_mean": 50.0, "top1_std": 1.5 if count > 1 else 0.0, "n": count}}
    card = {"recipe": {"distill": distill}, "score": score}
    tables.print_set(tiny_set().with_card(**card), Path("somewhere"))
    printed = capsys.readouterr().out
    assert all(text in printed for text in shown)
    assert "?" not in printed


def test_where_teachers_stay_at_home_there_is_no_row_for_them(
    capsys: pytest.CaptureFixture[str],
):
    score = {"top1": [50.0], "top1_mean": 50.0, "top1_std": 0.0, "n": 1}
    result = {
        "name": "tiny",
        "clients": 2,
        "sets": {"1": {"students": {"convnet": score}, "baselines": {}}},
        "teachers": {"top1": [None, None], "top1_mean": None},
        "seconds": {},
        "bytes": {"up": 1, "down": 1},
        "absent_clients": [],
        "absent_labellers": [1],
        "mlflow": {"run_id": None},
    }
    tables.print_result(result, Path("somewhere"))
    printed = capsys.readouterr().out
    assert "teachers" not in printed
    assert "did not label: [1]" in printed
    tables.print_result({**result, "teachers": {"top1": [60.0, None]}}, Path("somewhere"))
    assert "teachers" in capsys.readouterr().out
