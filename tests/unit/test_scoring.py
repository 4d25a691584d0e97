"""Scores of several sizes: students of all of them side by side, results as they come."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import tiny_set
from scored import HELD, SHARDS, TEACHERS, TRAIN, config, evaluator, refined
from torch import nn

from fedistill import evaluation, scoring
from fedistill import student as students
from fedistill.config import RelabelConfig
from fedistill.scoring import Scores
from fedistill.sets import SyntheticSet
from fedistill.student import Score


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_students_of_different_sizes_are_trained_side_by_side(monkeypatch: pytest.MonkeyPatch):
    both = threading.Barrier(2, timeout=60)

    def train(*args: Any, **where: Any) -> tuple[nn.Module, list[Any]]:
        both.wait()  # one alone would wait for ever
        return TEACHERS[0], []

    monkeypatch.setattr(students, "train", train)
    settings = config(seeds=1)
    sets = {ipc: refined(tiny_set(ipc), settings.relabel) for ipc in (1, 2)}
    found = scoring.score_all(evaluator(settings), sets, TRAIN, SHARDS, HELD, TEACHERS, {}, refined)
    assert [ipc for ipc, _ in found] == [2, 1]


def test_progress_counts_a_large_set_for_more_than_a_small_one(monkeypatch: pytest.MonkeyPatch):
    def train(*args: Any, **where: Any) -> tuple[nn.Module, list[Any]]:
        where["report"](1, 2)
        return TEACHERS[0], []

    monkeypatch.setattr(students, "train", train)
    monkeypatch.setattr(evaluation, "squeeze", lambda *args, **where: (TEACHERS[0], []))
    torch.set_num_threads(1)
    settings = config("full_data", seeds=1, epochs={1: 8, 5: 2})
    sets = {ipc: tiny_set(ipc) for ipc in (1, 5)}
    told: list[tuple[int, int]] = []
    judge, report = evaluator(settings), lambda *at: told.append(at)
    dict(scoring.score_all(judge, sets, TRAIN, SHARDS, HELD, TEACHERS, {}, refined, report))
    real = len(TRAIN) * settings.teacher.epochs
    total = real + 15 * 2 + 3 * 8
    assert told == [(15, total), (15 + 12, total)]  # of full data nothing is told here


def test_sets_beside_are_made_when_students_need_them(monkeypatch: pytest.MonkeyPatch):
    received = threading.Event()

    def train(synthetic: SyntheticSet, *args: Any, **where: Any) -> tuple[nn.Module, list[Any]]:
        assert len(synthetic) > 3 or received.wait(60), "the first scores have not come"
        return TEACHERS[0], []

    monkeypatch.setattr(students, "train", train)
    settings = config("k_center", ranking=True, seeds=1)
    sizes = (1, 2, 3, 4, 5, 6)
    sets = {ipc: refined(tiny_set(ipc), settings.relabel) for ipc in sizes}
    labelled: list[int] = []

    def refine(synthetic: SyntheticSet, views: RelabelConfig) -> SyntheticSet:
        labelled.append(len(synthetic))
        return refined(synthetic, views)

    found = scoring.score_all(evaluator(settings), sets, TRAIN, SHARDS, HELD, TEACHERS, {}, refine)
    assert labelled == []
    next(found)
    early = len(labelled)
    received.set()
    assert [ipc for ipc, _ in found] == [5, 4, 3, 2, 1]
    # Of each size: the set itself in plain views, chosen images, random ones in both views.
    assert sorted(labelled) == sorted(3 * ipc for ipc in sizes for _ in range(4))
    assert 0 < early < len(labelled)


def test_rows_had_elsewhere_stand_where_the_config_names_them():
    settings = config("hard_label", "fedavg", "ensemble")
    synthetic = refined(tiny_set(2), settings.relabel)
    judge = evaluator(settings)
    given = {"fedavg_1": Score([10.0], []), "fedavg_5": Score([50.0], [])}
    answers = judge.answers(TEACHERS)
    found = scoring.score_all(
        judge, {2: synthetic}, TRAIN, SHARDS, HELD, TEACHERS, answers, refined, beside=given
    )
    rows = dict(found)[2].baselines
    assert list(rows) == ["hard_label", "fedavg_1", "fedavg_5", "ensemble"]
    assert rows["fedavg_5"] is given["fedavg_5"]


def test_traffic_and_notes_stand_beside_the_scores():
    score = Score([50.0], [])
    scores = Scores({"convnet": score}, {"random": score, "ensemble": score})
    assert scores.as_dict()["baselines"]["random"] == score.as_dict()
    assert "traffic" not in scores.as_dict()
    sent = {"up": 2, "down": 1}
    noted = replace(scores, traffic=sent, notes={"random": {"bytes": sent}}).as_dict()
    assert noted["traffic"] == sent
    assert noted["baselines"]["random"] == {**score.as_dict(), "bytes": sent}
    assert noted["baselines"]["ensemble"] == score.as_dict()
