"""What the commands print."""

import json
from pathlib import Path

import made_up
import pytest
from fakes import tiny_set

from fedistill import comparison, tables


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


def test_teachers_of_unlike_splits_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    folder = made_up.sweep_folder(tmp_path / "one", clients=[2], seeds=[0])
    tables.print_sweep(comparison.read(folder), folder)
    assert "│ teachers │" in capsys.readouterr().out.replace("┃", "│")
    folder = made_up.sweep_folder(tmp_path / "two", clients=[2], seeds=[0], alphas=[None, 0.1])
    path = folder / "runs" / "sre2l_alpha-0.1_clients-02_seed-0" / "result.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "teachers": {"top1": [40.0], "top1_mean": 40.0}}))
    tables.print_sweep(comparison.read(folder), folder)
    printed = capsys.readouterr().out
    assert "teachers, iid" in printed
    assert "teachers, alpha 0.1" in printed
    assert "88.12" in printed or "88.13" in printed
    assert "40.00" in printed


def test_the_longer_way_of_a_sweep_goes_down_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "60")
    long = made_up.sweep_folder(tmp_path / "long", clients=[2, 3, 5], seeds=[0], ipc=[1])
    tables.print_sweep(comparison.read(long), long)
    head, *_ = [line for line in capsys.readouterr().out.splitlines() if "┃" in line]
    assert [name.strip() for name in head.split("┃")[1:-1]] == ["clients", "IPC 1", "teachers"]
    wide = made_up.sweep_folder(tmp_path / "wide", clients=[1, 2], seeds=[0], ipc=[1, 5])
    tables.print_sweep(comparison.read(wide), wide)
    printed = capsys.readouterr().out.splitlines()
    head, *_ = [line for line in printed if "┃" in line]
    assert [name.strip() for name in head.split("┃")[1:-1]] == ["", "1 client", "2 clients"]
    names = [line.split("│")[1].strip() for line in printed if line.startswith("│")]
    assert names == ["IPC 1", "IPC 5", "teachers"]


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
