"""Students that were trained before: read from the store, unless something else decides them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_config, tiny_set
from scored import HELD, SHARDS, TEACHERS, TRAIN, config, evaluator, refined

from fedistill import evaluation, scoring
from fedistill import student as students
from fedistill.scoring import Scores
from fedistill.store import Store


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("the student should have been read from the store")


def test_students_come_from_the_store_with_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = config("full_data", "hard_label")
    synthetic = refined(tiny_set(2), settings.relabel)

    def scores() -> Scores:
        judge = replace(evaluator(settings), store=Store(tmp_path))
        found = scoring.score_all(judge, {2: synthetic}, TRAIN, SHARDS, HELD, TEACHERS, {}, refined)
        return dict(found)[2]

    first = scores()
    monkeypatch.setattr(students, "train", forbidden)
    monkeypatch.setattr(evaluation, "squeeze", forbidden)
    second = scores()
    assert second.as_dict() == first.as_dict()
    for name, score in first.students.items():
        kept = second.students[name]
        assert kept.curves == score.curves
        assert score.network is not None
        assert kept.network is not None
        for key, tensor in score.network.state_dict().items():
            assert torch.equal(kept.network.state_dict()[key], tensor)


@pytest.mark.parametrize(
    "change",
    [
        {"student": {"epochs": 2}},
        {"student": {"models": [{"name": "convnet", "depth": 1, "width": 8}]}},
        {"seed": 1},
        {"relabel": {"scale": [0.5, 1.0]}},
    ],
    ids=["recipe", "model", "seed", "views"],
)
def test_another_student_is_trained(change: dict[str, Any], tmp_path: Path):
    base = {"student": {"epochs": 1, "seeds": 1}, "relabel": {"scale": [0.6, 1.0]}}
    other = {key: {**base.get(key, {}), **value} if isinstance(value, dict) else value
             for key, value in change.items()}  # fmt: skip
    for sections in (base, {**base, **other}):
        settings = tiny_config(model={"depth": 2, "width": 8}, **sections)
        judge = replace(evaluator(settings), store=Store(tmp_path))
        rows = judge.students(tiny_set(2))
        dict(judge.score(rows))
    assert len(list(tmp_path.iterdir())) == 2


def test_how_many_students_there_are_decides_nothing_about_one(tmp_path: Path):
    for count in (1, 3):
        settings = config(seeds=count, ranking=count == 3)
        judge = replace(evaluator(settings), store=Store(tmp_path))
        dict(judge.score(judge.students(tiny_set(2))))
        assert len(list(tmp_path.iterdir())) == count
