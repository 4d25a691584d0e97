"""What a federation costs, by hand and by the clock."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import tiny_config, tiny_spec, tiny_tree
from torch import Tensor

from fedistill import config_file, estimate, reference
from fedistill.distillers.dream import DREAM
from fedistill.estimate import Load, Rates

SPEC = tiny_spec(num_classes=10)
RATES = Rates(squeeze=1.0, recover=10.0, relabel=0.1, answer=0.03, student=0.5)


def test_the_longest_client_or_all_of_them_whichever_takes_longer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "usable_cores", lambda: 2)
    config = tiny_config(distill={"ipc": [1, 3]})  # 2 epochs of squeeze, of students; 2 views
    server = 40 * 2 * 0.1 + 40 * 2 * 0.5
    fixed = estimate._FEDERATION_S + server / 2
    even = Load(shards=[5, 5, 5], images=[1, 1, 1], real=15)
    assert estimate.seconds(config, SPEC, RATES, even) == pytest.approx(fixed + 3 * 20 / 2)
    long = Load(shards=[50, 5], images=[1, 1], real=55)
    assert estimate.seconds(config, SPEC, RATES, long) == pytest.approx(fixed + 110)
    kept = Load(shards=[0, 0], images=[0, 0], real=55)
    assert estimate.seconds(config, SPEC, RATES, kept) == pytest.approx(fixed)


def test_rows_beside_the_set_cost_labels_and_students(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "usable_cores", lambda: 1)
    nothing = Load(shards=[], images=[], real=100)

    def seconds(*rows: str) -> float:
        config = tiny_config(baselines=list(rows), student={"seeds": 3})
        return estimate.seconds(config, SPEC, RATES, nothing)

    plain, students = seconds(), 10 * 3 * 2 * 0.5
    assert seconds("hard_label") == pytest.approx(plain + students)
    assert seconds("random") == pytest.approx(plain + students + 10 * 3 * 2 * 0.1)
    assert seconds("herding") == pytest.approx(plain + students + 10 * 2 * 0.1)
    assert seconds("ensemble") == pytest.approx(plain)
    assert seconds("fedavg") == pytest.approx(plain + 100 * 5 * 2)


def test_what_a_client_does_whatever_it_makes_is_done_by_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "usable_cores", lambda: 1)
    rates = replace(RATES, start=100.0, cotrain=1000.0)
    load = Load(shards=[0, 0, 0], images=[4, 6, 0], real=0)  # one has made its share
    more = estimate.seconds(tiny_config(), SPEC, rates, load) - estimate.seconds(
        tiny_config(), SPEC, RATES, load
    )
    assert more == pytest.approx(2 * 100 + 1000)


def test_students_of_all_data_are_trained_as_teachers_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "usable_cores", lambda: 2)
    load = Load(shards=[], images=[], real=100, on_all=100)
    sections = {"student": {"seeds": 3}, "teacher": {"epochs": 5}}
    with_row, without = (tiny_config(**sections, baselines=it) for it in (["full_data"], []))
    assert estimate.seconds(with_row, SPEC, RATES, load) - estimate.seconds(
        without, SPEC, RATES, load
    ) == pytest.approx(100 * 5 * 3 / 2)
    assert estimate.passes(with_row, SPEC, load) - estimate.passes(without, SPEC, load) == 1500
    kept = replace(load, on_all=0)  # by a federation before
    assert estimate.passes(with_row, SPEC, kept) == estimate.passes(without, SPEC, kept)


MATCHING: dict[str, Any] = {
    "iterations": 2, "width": 4, "depth": 2, "network_images": 8, "batch_real": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("distill", "clients", "images"),
    [
        ({"name": "mibdc", "ipc": [1, 10]}, 1, 11),
        ({"name": "dream", "ipc": [1, 10]}, 5, 1 + 2),
        ({"name": "mdc", "ipc": [1, 10]}, 2, 5),  # small sets are cut out of the largest
    ],
)
def test_a_matched_set_costs_something_whatever_its_size(
    distill: dict[str, Any], clients: int, images: int, monkeypatch: pytest.MonkeyPatch
):
    """Of 12 classes ten are timed; a class takes 7 seconds, and 2 for each of its images."""
    asked: list[list[int]] = []

    def whole(part: Any, work: Callable[[Any], object]) -> float:
        with monkeypatch.context() as patch:
            patch.setattr(type(part), "distill_sizes", lambda self, tasks: asked.append(
                [sum(column) for column in zip(*(it.counts for it in tasks), strict=True)]
            ))  # fmt: skip
            work(part)
        return sum(7 + 2 * count for count in asked[-1] if count)

    monkeypatch.setattr(estimate, "_whole", whole)
    tree = tiny_tree(partition={"clients": clients}, student={"epochs": 2, "seeds": 1})
    config = config_file.from_dict({**tree, "distill": {**distill, **MATCHING}})
    rates = estimate.rates(config, tiny_spec(num_classes=12, size=16))
    assert rates.start == pytest.approx(12 * 7)
    assert rates.recover == pytest.approx(2)
    assert asked[-1] == [images] * 10 + [0, 0]


def test_clusters_are_found_as_often_as_in_a_run(monkeypatch: pytest.MonkeyPatch):
    clock = iter(
        [5.0, 5 + 2 * 3.0, 5 + 2 * 3.0 + 2 * 40.0]
    )  # 1 and 3 steps, and clusters each time
    monkeypatch.setattr(estimate, "_seconds", lambda work, times=2: next(clock))
    part = DREAM(iterations=100, interval=10)
    assert estimate._whole(part, lambda part: None) == pytest.approx(5 + 99 * 3 + 10 * 40)


def test_matching_is_timed_with_clusters_on_the_client_and_the_server(
    monkeypatch: pytest.MonkeyPatch,
):
    found: list[int] = []
    real = reference.representatives

    def watched(features: Tensor, count: int, seed: int) -> Tensor:
        found.append(len(features))
        return real(features, count, seed)

    monkeypatch.setattr(reference, "representatives", watched)
    tree = tiny_tree(
        student={"epochs": 2, "seeds": 1}, cotrain={**MATCHING, "reference": "largest"}
    )
    tree["distill"] = {"name": "mibdc", "ipc": [1, 2], **MATCHING, "candidates": 20}
    rates = estimate.rates(config_file.from_dict(tree), tiny_spec())
    assert all(value > 0 for name, value in vars(rates).items() if name != "start")
    assert set(found) == {20, 8}  # real images; the tiles of the set of two


def test_small_sets_may_have_students_of_more_epochs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "usable_cores", lambda: 1)

    def seconds(epochs: int | dict[int, int]) -> float:
        config = tiny_config(distill={"ipc": [1, 3]}, student={"epochs": epochs})
        return estimate.seconds(config, SPEC, RATES, Load(shards=[], images=[], real=0))

    more = 10 * (1 * 7 + 3 * 5) - 10 * (1 + 3) * 2
    assert seconds({1: 7, 2: 5}) == pytest.approx(seconds(2) + more * 0.5)


def test_passes_weigh_federations_without_a_clock():
    config = tiny_config()
    little = Load(shards=[10], images=[10], real=10)
    much = Load(shards=[1000], images=[10], real=1000)
    more = estimate.passes(config, SPEC, much) - estimate.passes(config, SPEC, little)
    assert more == 990 * 2


UNEVEN = {"partition": {"name": "dirichlet", "alpha": 0.1, "clients": 3}}


@pytest.mark.parametrize(
    "sections", [{}, UNEVEN, {**UNEVEN, "relabel": {"name": "mix", "views": 2}}]
)
def test_every_stage_is_timed(sections: dict[str, Any]):
    found = vars(estimate.rates(tiny_config(**sections), tiny_spec()))
    assert (found.pop("start"), found.pop("cotrain")) == (0, 0)
    assert found.pop("answer") >= 0  # a difference of two times, of hundredths of a second here
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize(
    "options",
    [{"name": "rded", "factor": 2}, {"name": "lic", "iterations": 1}, {"name": "random"}],
)
def test_methods_that_choose_real_images_find_enough_of_many_classes(options: dict[str, Any]):
    spec = tiny_spec(num_classes=200)
    config = config_file.from_dict(tiny_tree() | {"distill": {"ipc": [1], **options}})
    assert estimate.rates(config, spec).recover > 0


def test_mean_labels_ask_every_teacher_about_the_same_view(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "usable_cores", lambda: 1)
    nothing = Load(shards=[], images=[], real=100)

    def seconds(name: str) -> float:
        config = tiny_config(**UNEVEN, relabel={"name": name, "views": 2})
        return estimate.seconds(config, SPEC, RATES, nothing)

    assert seconds("mean") - seconds("mix") == pytest.approx(2 * 10 * 2 * 0.03)
