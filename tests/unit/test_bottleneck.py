"""Mutual information: exact where it can be counted, close where it is known in closed form."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedistill.losses.bottleneck import (
    Critic,
    Mixture,
    MixtureOptions,
    donsker_varadhan,
    infonce,
    log_mean_exp,
    normalised,
)

CPU = torch.device("cpu")
CLASSES = 4
LABELS = torch.arange(CLASSES).repeat_interleave(8)


def reward(mixture: Mixture, real: Tensor, own: Sequence[Tensor]) -> Tensor:
    """The rewards of sets of 1, 10 and 50 images, added up."""
    sets = dict(zip((1, 10, 50), (logits.requires_grad_() for logits in own), strict=False))
    return torch.stack([*mixture(real, sets, LABELS, CLASSES).values()]).sum()


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(labels: Tensor, noise: float, seed: int) -> Tensor:
    """Logits that say the class more or less clearly."""
    exact = F.one_hot(labels, CLASSES).float()
    return exact + noise * torch.randn(exact.shape, generator=stream(seed))


def test_log_mean_exp_is_what_it_says_and_does_not_overflow():
    scores = torch.randn(5, 3, generator=stream())
    by_hand = math.log(sum(math.exp(v) for v in scores.flatten().tolist()) / 15)
    assert log_mean_exp(scores).item() == pytest.approx(by_hand, 1e-5)
    assert log_mean_exp(scores + 1000).item() == pytest.approx(1000 + by_hand, 1e-5)


def test_the_bound_is_the_information_itself_for_the_best_critic():
    # A joint distribution that can be enumerated: counts of pairs (x, y).
    counts = torch.tensor([[6.0, 1, 1], [0.5, 4, 0.5], [1, 1, 5]]) * 2
    joint = counts / counts.sum()
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    exact = (joint * (joint / product).log()).sum()
    best = (joint / product).log()  # scores: T = ln p(x, y) / p(x) p(y)
    of_pairs = best.flatten().repeat_interleave(counts.flatten().long())
    weights = (product * counts.sum() ** 2).round().long()  # every pair as often as by chance
    of_strangers = best.flatten().repeat_interleave(weights.flatten())
    assert donsker_varadhan(of_pairs, of_strangers).item() == pytest.approx(exact.item(), 1e-4)
    for change in [best + 3, best.roll(1)]:  # a constant changes nothing, another critic is worse
        found = donsker_varadhan(
            change.flatten().repeat_interleave(counts.flatten().long()),
            change.flatten().repeat_interleave(weights.flatten()),
        )
        assert found <= exact + 1e-4


def test_scores_are_bounded_whatever_the_rows_are():
    critic = Critic((1, 1), MixtureOptions(clip=2.0), stream(), CPU)
    rows = 1e6 * torch.randn(64, 1, generator=stream(1))
    joint, marginal = critic._scores(rows, rows)
    assert max(joint.abs().max(), marginal.abs().max()) <= 2
    assert critic.estimate(rows, rows).isfinite()


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_a_trained_critic_finds_the_information_of_gaussians(correlation: float):
    options = MixtureOptions(critic_lr=5e-3)
    critic = Critic((1, 1), options, stream(1), CPU)
    draws = stream(2)

    def rows(count: int) -> tuple[Tensor, Tensor]:
        x, noise = torch.randn(2, count, 1, generator=draws)
        return x, correlation * x + math.sqrt(1 - correlation**2) * noise

    for _ in range(500):
        critic.fit(*rows(256))
    found = sum(critic.estimate(*rows(1000)).item() for _ in range(5)) / 5
    exact = -0.5 * math.log(1 - correlation**2)
    assert found == pytest.approx(exact, abs=0.08)


def test_a_trained_critic_finds_the_entropy_of_the_class():
    critic = Critic((CLASSES, CLASSES), MixtureOptions(critic_lr=5e-3), stream(), CPU)
    labels = torch.arange(CLASSES).repeat_interleave(32)
    rows = F.one_hot(labels, CLASSES).float()
    for _ in range(400):
        critic.fit(rows, rows)
    # Strangers never are the row itself, so they share a class a little less often than by chance.
    assert critic.estimate(rows, rows).item() == pytest.approx(math.log(CLASSES), abs=0.1)


def test_a_step_of_the_critic_raises_the_bound_and_leaves_the_rows_alone():
    x = logits_of(LABELS, 0.3, 1).requires_grad_()
    y = logits_of(LABELS, 0.3, 2)
    critic = Critic((CLASSES, CLASSES), MixtureOptions(), stream(), CPU)
    before = critic.estimate(x, y).item()
    for _ in range(50):
        critic.fit(x, y)
    assert critic.estimate(x, y).item() > before
    assert x.grad is None


@pytest.mark.parametrize("estimator", ["mine", "infonce"])
def test_the_same_stream_gives_the_same_numbers_whatever_the_global_one_is(estimator: str):
    found = []
    for number in range(2):
        torch.manual_seed(number)
        mixture = Mixture(
            MixtureOptions(estimator=estimator),
            CLASSES,
            stream(3),
            CPU,  # type: ignore[arg-type]
        )
        own = [logits_of(LABELS, 0.5, seed) for seed in (1, 2)]
        found += [reward(mixture, logits_of(LABELS, 0.5, 3), own).item()]
    assert found[0] == found[1]


def test_a_contrast_is_ln_of_the_classes_where_rows_tell_them_apart_and_0_where_they_do_not():
    exact = F.one_hot(LABELS, CLASSES).float()
    assert infonce(exact, exact, LABELS, 0.05).item() == pytest.approx(math.log(CLASSES), abs=1e-3)
    alike = torch.ones(len(LABELS), 3)
    assert infonce(alike, alike, LABELS, 0.05).item() == pytest.approx(0, abs=1e-5)


def test_a_contrast_follows_its_formula():
    x, y = (logits_of(LABELS, 1.0, seed) for seed in (4, 5))
    total = 0.0
    for i, own in enumerate(x):
        scores = [math.exp(F.cosine_similarity(own, row, 0).item() / 0.5) for row in y]
        same = [s for s, label in zip(scores, LABELS, strict=True) if label == LABELS[i]]
        total += math.log((sum(same) / len(same)) / (sum(scores) / len(scores)))
    assert infonce(x, y, LABELS, 0.5).item() == pytest.approx(total / len(x), 1e-4)


def contrast(**options: float | str) -> Mixture:
    """The reward without trained critics, so that it can be compared with its formula."""
    return Mixture(
        MixtureOptions(estimator="infonce", **options),
        CLASSES,
        stream(),
        CPU,  # type: ignore[arg-type]
    )


def three_sets() -> list[Tensor]:
    return [logits_of(LABELS, noise, 7 + i) for i, noise in enumerate((1.5, 1.0, 0.5))]


def test_the_reward_is_equation_3_12():
    real, own = logits_of(LABELS, 0.2, 6), three_sets()
    classes = F.one_hot(LABELS, CLASSES).float()

    def i(x: Tensor, y: Tensor) -> float:
        return infonce(x, y, LABELS, 0.2).item()

    rows = [normalised(logits) for logits in own]
    expected = 0.0
    for k, row in enumerate(rows):
        expected += i(row, normalised(real)) - 0.3 * max(0, i(row, classes))
        expected += 0.7 * sum(i(row, other) for j, other in enumerate(rows) if j != k)
    mixture = contrast(alpha=0.7, beta=0.3, hinge=0.0, guidance="two_way")
    assert reward(mixture, real, own).item() == pytest.approx(expected, 1e-5)
    assert set(mixture.estimates) == {
        *(f"real-{n}" for n in (1, 10, 50)),
        *(f"{n}-class" for n in (1, 10, 50)),
        *(f"{k}-{j}" for k in (1, 10, 50) for j in (1, 10, 50) if k != j),
    }


def test_one_way_guidance_comes_from_larger_sets_alone():
    mixture = contrast(guidance="one_way")
    reward(mixture, logits_of(LABELS, 0.2, 6), three_sets())
    between = {n for n in mixture.estimates if "real" not in n and "class" not in n}
    assert between == {"1-10", "1-50", "10-50"}


@pytest.mark.parametrize("guidance", ["one_way", "two_way"])
def test_a_set_is_moved_by_its_own_reward_alone(guidance: str):
    real = logits_of(LABELS, 0.2, 6)
    own = three_sets()
    both = torch.autograd.grad(reward(contrast(guidance=guidance, beta=0.0), real, own), own)
    # The largest set, one way: what it says about real images is all there is.
    alone = infonce(normalised(own[2]), normalised(real), LABELS, 0.2)
    (expected,) = torch.autograd.grad(alone, own[2])
    assert torch.allclose(both[2], expected, atol=1e-6) == (guidance == "one_way")


def test_information_about_the_class_is_free_up_to_the_hinge():
    real, own = logits_of(LABELS, 0.2, 6), three_sets()
    rewards = [
        reward(contrast(beta=beta, hinge=hinge), real, own).item()
        for beta, hinge in ((0.0, 0.0), (5.0, 1.0), (5.0, 0.0))
    ]
    assert rewards[1] == rewards[0]
    assert rewards[2] < rewards[0]


def climb(estimator: str, pace: float) -> tuple[float, float]:
    """Move one row of each class up the reward; all that is seen of it is noisy, and new each time.

    Returns:
        What was estimated at the end, and the share of classes that the rows name.
    """
    options = MixtureOptions(estimator=estimator, beta=0.0, critic_steps=5)  # type: ignore[arg-type]
    mixture = Mixture(options, CLASSES, stream(), CPU)
    rows = 0.1 * torch.randn(CLASSES, CLASSES, generator=stream(9))
    draws, found = stream(10), []
    for step in range(200):
        leaves = rows.clone().requires_grad_()
        views = leaves[LABELS] + torch.randn(len(LABELS), CLASSES, generator=draws)
        real = logits_of(LABELS, 0.1, 100 + step)
        total = mixture(real, {1: views}, LABELS, CLASSES)[1]
        (slope,) = torch.autograd.grad(total, leaves)
        rows += pace * slope / slope.norm()
        found.append(mixture.estimates["real-1"].item())
    named = (rows.argmax(1) == torch.arange(CLASSES)).float().mean().item()
    return sum(found[-20:]) / 20, named


@pytest.mark.parametrize("estimator", ["mine", "infonce"])
def test_ascending_the_reward_makes_small_sets_say_what_real_images_say(estimator: str):
    (still, _), (moved, named) = climb(estimator, 0.0), climb(estimator, 0.2)
    assert still < 0.3  # so a critic has nothing to learn by heart
    assert moved > still + 0.6
    # Information is kept by a renaming of the classes too; only the contrast knows their names.
    if estimator == "infonce":
        assert named == 1


def test_a_critic_climbs_the_gradient_with_the_moving_average_in_the_denominator():
    """E_joint[grad T] - E_marginal[e^T grad T] / average, MINE's Sec. 3.2, and not by the mean."""
    draws = stream(4)
    critic = Critic((CLASSES, CLASSES), MixtureOptions(), draws, CPU)
    x, y = logits_of(LABELS, 0.3, 1), logits_of(LABELS, 0.3, 2)
    critic._average = torch.tensor(2.0)
    weights, state = [*critic._network.parameters()], draws.get_state()
    joint, marginal = critic._scores(x, y)
    seen = marginal.exp().mean()
    average = 0.99 * math.exp(2.0) + 0.01 * seen.detach()
    expected, plain = (
        torch.autograd.grad(seen / below - joint.mean(), weights, retain_graph=True)
        for below in (average, seen.detach())
    )
    length = torch.cat([slope.flatten() for slope in expected]).norm()
    assert length < 5  # so it is not clipped
    draws.set_state(state)
    critic.fit(x, y)
    assert critic._average.exp().item() == pytest.approx(average.item(), 1e-5)
    found = [weight.grad for weight in weights]
    for own, wanted, other in zip(found, expected, plain, strict=True):
        assert own is not None
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(own, other, rtol=1e-2)


def test_forgetting_starts_the_moving_average_again():
    critic = Critic((1, 1), MixtureOptions(), stream(), CPU)
    rows = torch.randn(16, 1, generator=stream(1))
    critic.fit(rows, rows)
    assert critic._average is not None
    critic.forget()
    assert critic._average is None


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1.0}, {"beta": -0.1}, {"hinge": 1.5}, {"clip": 0.0}, {"critic_steps": 0}],
)
def test_options_out_of_range_are_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(options))):
        MixtureOptions(**options)  # type: ignore[arg-type]


def test_a_set_without_a_gradient_guides_and_gets_no_reward():
    mixture = contrast()
    sets = {1: three_sets()[0].requires_grad_(), 50: three_sets()[2]}
    assert list(mixture(logits_of(LABELS, 0.2, 6), sets, LABELS, CLASSES)) == [1]
    assert set(mixture.estimates) == {"real-1", "1-class", "1-50"}


def test_the_hinge_is_a_share_of_what_the_compared_classes_can_tell():
    two = LABELS < 2
    labels = LABELS[two]
    exact = F.one_hot(labels, CLASSES).float()
    rewards = [
        contrast(beta=beta, hinge=0.5)(exact, {1: exact.clone().requires_grad_()}, labels, 2)[
            1
        ].item()
        for beta in (0.0, 1.0)
    ]
    assert rewards[1] < rewards[0] - 0.2  # ln 2 is above half of ln 2; it is no half of ln 4


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_normalised_logits_move_also_with_two_classes(classes: int):
    logits = torch.randn(4, classes, generator=stream(1)).requires_grad_()
    weights = torch.randn(4, classes, generator=stream(2))
    (slope,) = torch.autograd.grad((weights * normalised(logits)).sum(), logits)
    assert slope.abs().max() > 0.05
    assert normalised(1000 * logits).abs().max() < math.sqrt(classes)
