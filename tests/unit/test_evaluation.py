"""The rows of a result: which set each student learns from, and what is done once."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from fakes import CPU, tiny_config, tiny_set, tiny_teacher
from scored import (
    HELD,
    MODEL,
    SHARDS,
    SPEC,
    TEACHERS,
    TEST,
    TRAIN,
    config,
    evaluator,
    refined,
    scored,
)
from torch import nn

from fedistill import baselines, config_file, evaluation, rivals, scoring, slots
from fedistill import student as students
from fedistill.config import Config, ModelConfig
from fedistill.crops import ViewOptions
from fedistill.distillers.base import Task
from fedistill.fusion import class_weights, consensus
from fedistill.images import ImageSet
from fedistill.relabel import view_options
from fedistill.scoring import Scores
from fedistill.sets import SyntheticSet
from fedistill.teacher import Committee
from fedistill.training import accuracy, load_weights, top1


@dataclass
class Seen:
    """The sets that students were trained on, in the order of the rows, by student."""

    sets: dict[int, list[SyntheticSet]] = field(default_factory=lambda: defaultdict(list))

    def images(self, row: int) -> list[bytes]:
        return [self.sets[number][row].images.numpy().tobytes() for number in sorted(self.sets)]

    def views(self, row: int) -> ViewOptions | None:
        labels = self.sets[0][row].soft_labels
        return None if labels is None else labels.options


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Students are not trained; the sets that they are given are remembered."""
    found = Seen()

    def train(synthetic: SyntheticSet, *args: Any, **where: Any) -> tuple[nn.Module, list[Any]]:
        found.sets[where["number"]].append(synthetic)
        return TEACHERS[0], []

    monkeypatch.setattr(students, "train", train)
    monkeypatch.setattr(evaluation, "squeeze", lambda *args, **where: (TEACHERS[0], []))
    return found


def tasks(teachers: Sequence[nn.Module] = (TEACHERS[0],)) -> list[Task]:
    return [
        Task(
            counts=[0, 0, 0],
            shard=TRAIN.select(index),
            teachers=teachers,
            models=[MODEL] * len(teachers),
            spec=SPEC,
            seed=0,
            partition_id=client,
            device=CPU,
        )
        for client, index in enumerate(SHARDS)
    ]


def keys(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("name", ["random", "herding", "k_center"])
def test_a_coreset_holds_real_images_of_the_clients_that_would_have_made_them(name: str):
    plan = baselines.coreset_plan(name, tasks(), [3, 3, 3])
    assert plan == slots.allocate({0: [3] * 3, 1: [5] * 3}, [3, 3, 3])
    found = baselines.coreset(name, tasks(), plan)
    assert found.as_image_set().histogram(3) == [3, 3, 3]
    assert found.soft_labels is None
    for client, index in enumerate(SHARDS):
        mine = found.clients == client
        assert int(mine.sum()) == sum(plan[client])
        for label in range(3):
            shard = TRAIN.select(index)
            held = keys(shard.images[shard.labels == label])
            assert keys(found.images[mine & (found.hard_labels == label)]) <= held
    assert len(keys(found.images)) == 9


def test_a_client_with_few_images_gives_no_more_than_it_holds():
    assert baselines.coreset_plan("random", tasks(), [8, 8, 8]) == {0: [3] * 3, 1: [5] * 3}
    with pytest.raises(LookupError) as raised:
        baselines.coreset_plan("random", tasks(), [2, 9, 2])
    assert raised.value.args == (1, 8)


def test_every_student_has_random_images_of_its_own_and_shares_chosen_ones(seen: Seen):
    scored(config("random", "herding"))
    distilled, random, herding = (seen.images(row) for row in range(3))
    assert distilled[0] == distilled[1]
    assert random[0] != random[1]
    assert herding[0] == herding[1]
    assert keys(torch.cat([found[1].images for found in seen.sets.values()])) <= keys(TRAIN.images)


def test_real_images_are_labelled_like_the_distilled_ones(seen: Seen):
    settings = config("random", "k_center", "hard_label")
    scored(settings)
    expected = view_options(settings.relabel, SPEC)
    assert [seen.views(row) for row in range(4)] == [expected, None, expected, expected]
    random = seen.sets[0][2].soft_labels
    assert random is not None
    assert torch.equal(random.logits, _labels_of(seen.sets[0][2], settings))


def _labels_of(synthetic: SyntheticSet, settings: Config) -> torch.Tensor:
    labels = refined(replace(synthetic, soft_labels=None), settings.relabel).soft_labels
    assert labels is not None
    return labels.logits


def test_too_few_real_images_leave_a_row_out_with_a_warning(
    seen: Seen, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        found = scored(config("random", "hard_label", ranking=True), 9)[9]
    assert found.baselines.keys() == {"hard_label"}
    assert found.ranking is None
    assert "'random' is left out: the set has 9 images of class 'class 0'" in caplog.text
    assert "hold 8 real ones" in caplog.text


def test_a_ranking_adds_its_rows(seen: Seen):
    found = scored(config("random", ranking=True))[2]
    assert found.ranking is not None
    assert found.baselines.keys() == {"random"}
    assert found.ranking.random is found.baselines["random"]
    assert found.ranking.distilled is found.students["convnet"]
    assert found.as_dict()["ranking"] == found.ranking.as_dict()
    assert "ranking" not in Scores(found.students).as_dict()


def test_the_plain_rows_of_a_ranking_show_the_same_images_whole_and_unmixed(seen: Seen):
    settings = config(ranking=True)
    scored(settings)
    distilled, hard, plain, random, random_plain = range(5)
    for augmented, whole in ((distilled, plain), (random, random_plain)):
        assert seen.images(augmented) == seen.images(whole)
        assert seen.views(augmented) == view_options(settings.relabel, SPEC)
        assert seen.views(whole) == ViewOptions(mix_probability=0.5)  # of no mixing
    assert seen.views(hard) is None
    assert seen.images(random)[0] != seen.images(random)[1]


def test_what_does_not_depend_on_the_set_is_done_once(seen: Seen, monkeypatch: pytest.MonkeyPatch):
    trained: list[int] = []

    def squeeze(shard: ImageSet, *args: Any, **where: Any) -> tuple[nn.Module, list[Any]]:
        trained.append(len(shard))
        return TEACHERS[0], []

    monkeypatch.setattr(evaluation, "squeeze", squeeze)
    one, two = scored(config("ensemble", "full_data"), 1, 2).values()
    assert trained == [24, 24]  # two seeds
    assert one.baselines["full_data"] is two.baselines["full_data"]
    assert one.baselines["ensemble"] is two.baselines["ensemble"]
    assert list(one.baselines) == ["ensemble", "full_data"]


def test_a_committee_is_taken_apart_for_the_methods_that_choose(
    monkeypatch: pytest.MonkeyPatch, seen: Seen
):
    asked: list[Task] = []
    real = baselines.coreset

    def coreset(name: str, tasks: Sequence[Task], *rest: Any) -> SyntheticSet:
        asked.extend(tasks)
        return real(name, tasks, *rest)

    monkeypatch.setattr(baselines, "coreset", coreset)
    members = [tiny_teacher(2), tiny_teacher(3)]
    monkeypatch.setitem(TEACHERS, 1, Committee(members))
    scored(config("herding"))
    assert [task.teachers for task in asked] == [[TEACHERS[0]], members]
    assert [task.partition_id for task in asked] == [0, 1]


def test_the_score_of_a_row_is_the_accuracy_of_its_students():
    settings = config()
    synthetic = refined(tiny_set(2), settings.relabel)
    judge = evaluator(settings)
    found = dict(judge.score(judge.students(synthetic)))["convnet"]
    for number in range(2):
        network, curve = students.train(
            synthetic, MODEL, settings.student, view_options(settings.relabel, SPEC),
            seed=0, number=number, device=CPU, dtype=torch.float32,
        )  # fmt: skip
        assert found.top1[number] == accuracy(network, TEST, SPEC, torch.float32)
        assert found.curves[number] == curve


def test_two_models_of_one_name_have_rows_of_their_own():
    models = tuple(ModelConfig(name="convnet", depth=2, width=width) for width in (4, 8))
    settings = config()
    judge = evaluator(replace(settings, student=replace(settings.student, models=models)))
    assert list(judge.students(tiny_set())) == ["convnet", "convnet-2"]


def test_progress_counts_every_student_of_every_row():
    told: list[tuple[int, int]] = []
    settings = config(epochs=3)
    judge = evaluator(settings)
    synthetic = refined(tiny_set(), settings.relabel)
    dict(judge.score(judge.students(synthetic), lambda *at: told.append(at)))
    views = 2 * 3 * len(synthetic)  # students, epochs
    assert told[-1] == (views, views)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_real_images_beside_a_mosaic_are_seen_whole():
    lic = {"name": "lic"}
    views = rivals.whole_image_views(tiny_config(distill={**lic}))
    assert (views.tiles, views.tile_share, views.scale) == (1, 0.0, (0.6, 1.0))
    for sections in (
        {"student": {"protocol": "lic"}},  # a published protocol with whole images stays as it is
        {"relabel": {"tiles": 4, "tile_share": 0.25, "scale": [0.3, 1.0]}},  # and so does the user
    ):
        config = tiny_config(distill={**lic}, **sections)
        assert rivals.whole_image_views(config) == config.relabel
    config = config_file.from_dict({"distill": {"name": "dream"}, "student": {"protocol": "dream"}})
    views = rivals.whole_image_views(config)
    assert (config.relabel.tiles, config.relabel.tile_share) == (2, 1.0)
    assert (views.tiles, views.tile_share, views.scale, views.shift) == (1, 0.0, (1.0, 1.0), 4)
    plain = tiny_config()
    assert rivals.whole_image_views(plain) == plain.relabel


def test_the_average_of_weights_is_weighted_by_samples():
    states = [{"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
              {"a": torch.tensor([5.0, -2.0]), "n": torch.tensor(7)}]  # fmt: skip
    found = baselines.weight_average(states, [1, 3])
    assert found["a"].tolist() == [4.0, -1.0]
    assert found["n"].item() == 6.0


def test_the_average_of_the_teachers_is_tested_once(seen: Seen):
    one, two = scored(config("weight_average", "ensemble"), 1, 2).values()
    assert list(one.baselines) == ["weight_average", "ensemble"]
    assert one.baselines["weight_average"] is two.baselines["weight_average"]
    states = [net.state_dict() for net in TEACHERS.values()]
    network = tiny_teacher()
    load_weights(network, baselines.weight_average(states, [9, 15]))
    expected = accuracy(network, TEST, SPEC, torch.float32)
    assert one.baselines["weight_average"].top1 == [expected]


def test_weighted_ensembles_hear_who_has_seen_a_class(seen: Seen):
    held = {0: [9, 0, 3], 1: [0, 12, 3]}
    settings = config("coverage_ensemble", "consensus_ensemble")
    judge = evaluator(settings)
    answers = judge.answers(TEACHERS)
    sets = {2: refined(tiny_set(2), settings.relabel)}
    found = scoring.score_all(judge, sets, TRAIN, SHARDS, held, TEACHERS, answers, refined)
    one, two = (logits.log_softmax(1) for logits in answers.values())
    third = (one[:, 2] + two[:, 2]) / 2
    expected = top1(torch.stack([one[:, 0], two[:, 1], third], 1), TEST.labels)
    rows = dict(found)[2].baselines
    assert rows["coverage_ensemble"].top1 == [expected]
    agreed = consensus([*answers.values()], class_weights(held, [0, 1]))
    assert rows["consensus_ensemble"].top1 == [top1(agreed, TEST.labels)]


def test_who_says_nothing_finite_is_in_no_ensemble_and_no_average(seen: Seen):
    settings = config("ensemble", "coverage_ensemble", "consensus_ensemble", "weight_average")
    judge = evaluator(settings)
    said = judge.answers(TEACHERS)
    sets = {2: refined(tiny_set(2), settings.relabel)}
    given = sets, TRAIN, SHARDS, HELD, TEACHERS
    beside = said[1].clone()
    beside[3, 1] = torch.nan
    for answers in ({0: said[0], 1: beside}, {0: said[0]}):
        rows = dict(scoring.score_all(judge, *given, answers, refined))[2].baselines
        alone = [accuracy(TEACHERS[0], TEST, SPEC, torch.float32)]
        assert {name: score.top1 for name, score in rows.items()} == dict.fromkeys(
            settings.baselines, alone
        )


def test_rows_are_not_left_out_without_a_word(seen: Seen, caplog: pytest.LogCaptureFixture):
    settings = config("hard_label", "ensemble", "weight_average")
    judge = evaluator(settings)
    nothing = {n: torch.full_like(said, torch.nan) for n, said in judge.answers(TEACHERS).items()}
    sets = {2: refined(tiny_set(2), settings.relabel)}
    every = scoring.score_all(judge, sets, TRAIN, SHARDS, HELD, TEACHERS, nothing, refined)
    assert [*dict(every)[2].baselines] == ["hard_label"]
    assert "left out, as no teacher says anything finite: ensemble, weight_average" in caplog.text


def test_answers_are_on_the_cpu_where_they_are_compared_with_labels(
    monkeypatch: pytest.MonkeyPatch,
):
    class OnDevice:
        def cpu(self) -> torch.Tensor:
            return torch.ones(2)

    monkeypatch.setattr(evaluation, "logits_of", lambda *_: OnDevice())
    assert [it.tolist() for it in evaluator(config()).answers(TEACHERS).values()] == [[1, 1]] * 2


def test_several_teachers_of_a_client_all_enter_the_average(
    monkeypatch: pytest.MonkeyPatch, seen: Seen
):
    monkeypatch.setitem(TEACHERS, 1, Committee([TEACHERS[0], TEACHERS[0]]))
    found = scored(config("weight_average"))[2].baselines["weight_average"]
    assert found.top1 == [accuracy(tiny_teacher(0), TEST, SPEC, torch.float32)]
