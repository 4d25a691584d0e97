"""DD-Ranking's scores against their formulas."""

import math

import pytest

from fedistill.ranking import Ranking, ars, lrs
from fedistill.student import Score

NOTHING = (1 - math.exp(-1)) / (math.e - math.exp(-1))  # of a set that is worth what others are

ROWS = {
    "full_data": Score([88.0, 92.0], []),
    "hard_label": Score([40.0], []),
    "distilled": Score([70.0], []),
    "random": Score([58.0, 62.0], []),
    "distilled_plain": Score([55.0], []),
    "random_plain": Score([50.0], []),
}


def test_the_scores_reach_from_0_to_1():
    best = lrs(full_data=0.0, hard_label=1.0, distilled=1.0, random=0.0)
    worst = lrs(full_data=1.0, hard_label=0.0, distilled=0.0, random=1.0)
    assert (worst, best) == (0.0, pytest.approx(1))
    assert ars(distilled=1.0, random=0.0, distilled_plain=1.0, random_plain=0.0) == pytest.approx(1)
    assert ars(distilled=0.0, random=1.0, distilled_plain=0.0, random_plain=1.0) == 0.0


def test_a_set_no_better_than_random_images_has_the_score_of_nothing():
    assert lrs(full_data=0.9, hard_label=0.9, distilled=0.7, random=0.7) == pytest.approx(NOTHING)
    same = {"distilled": 0.6, "random": 0.6, "distilled_plain": 0.4, "random_plain": 0.4}
    assert ars(**same) == pytest.approx(NOTHING)


def test_the_weight_says_how_much_each_difference_counts():
    rows = {"full_data": 0.9, "hard_label": 0.4, "distilled": 0.8, "random": 0.6}
    span = math.e - math.exp(-1)
    for weight in (0.0, 0.25, 1.0):
        merit = weight * 0.2 - (1 - weight) * 0.5
        expected = (math.exp(merit) - math.exp(-1)) / span
        assert lrs(**rows, weight=weight) == pytest.approx(expected)
    views = {"distilled": 0.8, "random": 0.6, "distilled_plain": 0.5, "random_plain": 0.6}
    expected = (math.exp(0.75 * 0.2 - 0.25 * 0.1) - math.exp(-1)) / span
    assert ars(**views, weight=0.75) == pytest.approx(expected)


def test_a_ranking_takes_the_means_of_its_rows_as_fractions():
    found = Ranking(**ROWS)
    assert (found.hlr, found.ior) == (50.0, 10.0)
    assert found.lrs == lrs(full_data=0.9, hard_label=0.4, distilled=0.7, random=0.6)
    assert found.ars == ars(distilled=0.7, random=0.6, distilled_plain=0.55, random_plain=0.5)


def test_what_is_written_down_has_the_rows_in_percent():
    found = Ranking(**ROWS).as_dict()
    merit = 0.5 * 0.1 - 0.5 * 0.5
    assert found["lrs"] == pytest.approx(
        (math.exp(merit) - math.exp(-1)) / (math.e - math.exp(-1)), abs=1e-4
    )
    assert (found["hlr"], found["ior"]) == (50.0, 10.0)
    assert found["rows"].keys() == ROWS.keys()
    assert found["rows"]["random"] == ROWS["random"].as_dict()
