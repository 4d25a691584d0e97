"""Labels where clients hold different classes: coverage and prior correction."""

import math

import pytest
import torch
from fakes import Constant, tiny_set, tiny_teacher
from hypothesis import given
from hypothesis import strategies as st
from labelling import constant_teachers, labelled, logits

from fedistill.answers import prior_adjustment
from fedistill.fusion import class_weights, consensus, coverage

HELD = {0: [60, 0, 1], 1: [30, 5, 1], 2: [10, 5, 1]}


def test_coverage_is_the_share_of_the_images_of_the_class():
    found = coverage(HELD, [0, 2], torch.tensor([0, 1, 2, 0]))
    assert found.tolist() == [[60, 10], [0, 5], [1, 1], [60, 10]]


def test_a_class_that_none_of_the_teachers_saw_is_anyones():
    assert coverage({3: [0, 1], 4: [0, 9]}, [3, 4], torch.tensor([0])).tolist() == [[1, 1]]


def test_teachers_are_drawn_as_often_as_they_cover_the_class():
    synthetic = tiny_set()
    how = {"name": "mix", "teacher_choice": "coverage", "views": 3000}
    who = logits(constant_teachers(), synthetic, histograms=HELD, **how)[..., 0].long()
    assert torch.equal(
        who, logits(constant_teachers(), synthetic, histograms=HELD, **how)[..., 0].long()
    )
    for image, label in enumerate(synthetic.hard_labels.tolist()):
        column = torch.tensor([HELD[client][label] for client in range(3)], dtype=torch.float64)
        drawn = torch.bincount(who[:, image], minlength=3) / 3000
        expected = column / column.sum()
        spread = (expected * (1 - expected) / 3000).sqrt()
        assert ((drawn - expected).abs() <= 5 * spread).all(), (label, drawn)


def test_a_covering_mean_weighs_every_class_by_who_saw_it():
    """A plain loop over classes and teachers."""
    said = {0: [1.0, 2.0, 3.0], 1: [-4.0, 0.0, 5.0], 2: [0.5, 0.5, -2.0]}
    histograms = {0: [60, 0, 1], 1: [30, 5, 0], 2: [10, 5, 0]}
    expected = []
    for label in range(3):
        held = {n: histograms[n][label] for n in said}
        logs = {n: math.log(torch.tensor(said[n]).softmax(0)[label]) for n in said}
        expected.append(sum(held[n] * logs[n] for n in said) / sum(held.values()))
    centre = sum(expected) / 3
    teachers = {n: Constant(values) for n, values in said.items()}
    found = logits(teachers, name="mean", teacher_choice="coverage", histograms=histograms)
    for value, wanted in zip(found[0, 0].tolist(), expected, strict=True):
        assert value == pytest.approx(wanted - centre, abs=5e-3)


def test_balanced_shards_take_nothing_away_bit_for_bit():
    for count in (0, 1, 7, 123):
        for classes in (1, 3, 10, 100):
            zeros = prior_adjustment([count] * classes)
            assert torch.equal(zeros, torch.zeros(classes))
            assert not zeros.signbit().any()  # x - 0 is x, for -0 too
    teachers = {number: tiny_teacher(number) for number in range(2)}
    balanced = {0: [41, 41, 41], 1: [41, 41, 41]}
    for name in ("mix", "own", "single", "mean", "consensus"):
        plain = labelled(teachers, name=name)
        corrected = labelled(teachers, name=name, histograms=balanced, prior_correction=True)
        assert corrected.sha256 == plain.sha256


@given(histogram=st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_the_adjustment_is_the_centred_log_of_the_smoothed_prior(histogram: list[int]):
    smoothed = [(count + 1) / (sum(histogram) + len(histogram)) for count in histogram]
    logs = [math.log(prior) for prior in smoothed]
    centre = sum(logs) / len(logs)
    found = prior_adjustment(histogram)
    assert found.tolist() == pytest.approx([log - centre for log in logs], abs=1e-5)
    assert abs(float(found.double().mean())) < 1e-5


@pytest.mark.parametrize("name", ["mix", "own", "single", "mean"])
def test_each_teacher_is_corrected_by_its_own_prior(name: str):
    said = {0: [1.0, 2.0, 3.0], 1: [-4.0, 0.0, 5.0]}
    histograms = {0: [8, 0, 1], 1: [0, 0, 50]}
    adjusted = {n: torch.tensor(v) - prior_adjustment(histograms[n]) for n, v in said.items()}
    expected = torch.stack(
        [adjusted[0].half(), adjusted[1].half()]
        if name != "mean"
        else [((adjusted[0].half().float() + adjusted[1].half().float()) / 2).half()]
    )
    teachers = {n: Constant(v) for n, v in said.items()}
    found = logits(teachers, name=name, histograms=histograms, prior_correction=True).view(-1, 3)
    rows = {tuple(row) for row in found.tolist()}
    wanted = [tuple(row) for row in expected.tolist()]
    assert rows == set(wanted[:1] if name == "single" else wanted)


@pytest.mark.parametrize("choice", ["uniform", "coverage"])
def test_a_consensus_is_found_of_corrected_answers(choice: str):
    said = {0: [1.0, 2.0, 3.0], 1: [-4.0, 0.0, 5.0]}
    histograms = {0: [8, 0, 1], 1: [0, 0, 50]}
    adjusted = [torch.tensor([v]) - prior_adjustment(histograms[n]) for n, v in said.items()]
    weights = class_weights(histograms, [0, 1])
    weights = torch.full_like(weights, 1 / 2) if choice == "uniform" else weights
    expected = consensus([logits.half() for logits in adjusted], weights)
    found = logits(
        {n: Constant(v) for n, v in said.items()},
        name="consensus",
        teacher_choice=choice,
        histograms=histograms,
        prior_correction=True,
    )
    wanted = (expected - expected.mean()).half().expand_as(found)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
