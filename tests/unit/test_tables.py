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
