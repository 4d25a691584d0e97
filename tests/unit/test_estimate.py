"""What a federation costs, by hand and by the clock."""

from typing import Any

import pytest
from fakes import tiny_config, tiny_spec

from fedistill import estimate
from fedistill.estimate import Load, Rates

SPEC = tiny_spec(num_classes=10)
RATES = Rates(squeeze=1.0, recover=10.0, relabel=0.1, student=0.5)


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
    found = estimate.rates(tiny_config(**sections), tiny_spec())
    assert all(value > 0 for value in vars(found).values())


def test_mean_labels_ask_every_teacher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "usable_cores", lambda: 1)
    nothing = Load(shards=[], images=[], real=100)

    def seconds(name: str) -> float:
        config = tiny_config(**UNEVEN, relabel={"name": name, "views": 2})
        return estimate.seconds(config, SPEC, RATES, nothing)

    assert seconds("mean") - seconds("mix") == pytest.approx(2 * 10 * 2 * 0.1)
