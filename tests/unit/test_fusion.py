"""One answer of many teachers' answers: consensus. Coverage is in test_relabel_coverage."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedistill import fusion
from fedistill.fusion import class_weights, consensus

Table = list[list[float]]


def tables(
    clients: st.SearchStrategy[int], entries: st.SearchStrategy[float]
) -> st.SearchStrategy[Table]:
    """Draw a row of four entries, one a class, for each client."""
    row = st.lists(entries, min_size=4, max_size=4)
    return clients.flatmap(lambda count: st.lists(row, min_size=count, max_size=count))


def walked(said: torch.Tensor, weights: torch.Tensor, steps: int = 20_000) -> torch.Tensor:
    """Walk from class to client to class: a plain loop."""
    classes = torch.full(said.shape[1:], 1 / said.shape[1], dtype=torch.float64)
    for _ in range(steps):
        clients = weights.double() @ classes
        classes = clients @ said.double()
    return classes


@given(
    held=tables(st.integers(1, 6), st.integers(1, 10**4)),
    shows=st.lists(st.floats(-12, 0), min_size=4, max_size=4),
)
def test_teachers_that_are_right_about_their_own_images_are_right_together(
    held: Table, shows: list[float]
):
    """Bayes' rule with every client's prior, and with that of all together."""
    counts, likelihood = torch.tensor(held).double(), torch.tensor(shows).double().exp()
    answers = [(row * likelihood).log()[None] for row in counts]
    expected = (counts.sum(0) * likelihood).log().log_softmax(0)
    histograms = {n: [int(count) for count in row] for n, row in enumerate(held)}
    found = consensus(answers, class_weights(histograms, [*histograms]))
    assert found[0].tolist() == pytest.approx(expected.tolist(), abs=1e-3)


@given(said=tables(st.just(3), st.floats(-3, 3)), held=tables(st.just(3), st.integers(1, 20)))
def test_it_is_where_the_walk_stays(said: Table, held: Table):
    weights = torch.tensor(held) / torch.tensor(held).sum(0)
    answers = [torch.tensor([logits]) for logits in said]
    expected = walked(torch.tensor(said).softmax(1), weights, 500)
    assert consensus(answers, weights).exp()[0].tolist() == pytest.approx(
        expected.tolist(), abs=1e-4
    )


def test_equal_weights_give_the_mean_of_the_probabilities():
    answers = [torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0]]), torch.tensor([[4.0, 0, 0]] * 2)]
    expected = torch.stack(answers).softmax(2).mean(0)
    found = consensus(answers, torch.full((2, 3), 0.5)).exp()
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_teacher_alone_is_believed():
    answers = torch.tensor([[1.0, 2.0, 3.0]])
    found = consensus([answers], class_weights({4: [9, 0, 1]}, [4]))
    assert torch.allclose(found, answers.log_softmax(1))


def test_who_knows_a_single_class_and_sees_it_everywhere_is_not_heard():
    """Client 1 holds most zeros and nothing else; client 0 knows a few zeros and all ones."""
    held = {0: [10, 1000, 0], 1: [990, 0, 0], 2: [0, 0, 1000]}
    everywhere = [30.0, 0.0, 0.0]
    zero = [torch.tensor([row]) for row in ([9.0, 0.0, 0.0], everywhere, [0.0, 0.0, 4.0])]
    one = [torch.tensor([row]) for row in ([0.0, 9.0, 0.0], everywhere, [0.0, 0.0, 4.0])]
    weights = class_weights(held, [*held])
    assert consensus(zero, weights).exp()[0, 0] > 0.95
    assert consensus(one, weights).exp()[0, 1] > 0.95
    assert fusion.class_weighted(one, weights).softmax(1)[0, 1] < 0.4  # an average by class is torn


def test_a_walk_that_hardly_ever_leaves_is_followed_to_its_end():
    """Leaving in 1e-12 and 2e-12 of all steps: no power of the chain in float64 gets there."""
    rare = math.log(1e-12)
    answers = [torch.tensor([[0.0, rare]]), torch.tensor([[rare + math.log(2), 0.0]])]
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert consensus(answers, weights).exp()[0].tolist() == pytest.approx([2 / 3, 1 / 3], rel=1e-4)


@pytest.mark.parametrize("held", [{0: [5, 0, 0], 1: [0, 5, 0]}, {0: [5, 0, 0], 1: [0, 0, 0]}])
def test_answers_stay_finite_whatever_is_said(held: dict[int, list[int]]):
    most = torch.finfo(torch.float16).max
    answers = [torch.tensor([[most, -most, -most]]).half(), torch.tensor([[-most, most, 0]]).half()]
    found = consensus(answers, class_weights(held, [0, 1]))
    assert found.isfinite().all()
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    answers = [*torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))]
    weights = class_weights({0: [1, 2, 3, 4], 1: [4, 3, 2, 1], 2: [0, 0, 9, 1]}, [0, 1, 2])
    whole = consensus(answers, weights)
    monkeypatch.setattr(fusion, "_NUMBERS", 3 * 4 * 7)
    assert torch.allclose(consensus(answers, weights), whole, atol=1e-6)
