"""Mutual information between what a network says of sets of different sizes (MIBDC).

The mixture of information bottlenecks rewards, for each size k with outputs O_k,

    L_mix^k = I(O_real, O_k) - beta * I(O_k, Y) + alpha * sum_{j != k} I(O_k, O_j)      (Eq. 3.12)

which is *maximised*: the paper adds it to a loss (Eq. 3.13), with the sign that would undo it.

Outputs of different sets are paired class by class, so every I carries class information only
and is at most ln C for C classes that are compared; one class alone carries none. I(O_k, Y)
counts as far as it exceeds `hinge` times that: the paper speaks of a threshold. With `mine` the
most there can be is a little higher, ln((n C - 1) / (n - 1)) with n rows of each class: a row is no
stranger to itself, so strangers share its class less often than by chance.

Two ways to estimate I(X, Y) from b paired rows:

`mine`      Belghazi et al., "Mutual Information Neural Estimation" (ICML 2018): the best
            T in  E_joint[T(x, y)] - ln E_marginal[exp T(x, y)],  T a small trained network.
            Gradients are corrected by a moving average of the logarithm's argument (MINE, Sec.
            3.2) and clipped. Scores are squeezed between -`clip` and `clip`, which makes T one
            more critic: the bound still holds. SMILE (Song and Ermon, ICLR 2020) clips those of
            the marginal alone, and then the others grow without limit (here: 1.65 nats in 400
            steps, where ln 4 = 1.39 is the most there can be).
`infonce`   a contrast of rows of the same class with all rows (van den Oord et al. 2018; for
            distillation: MIM4DD, Shang et al., NeurIPS 2023), by their cosine; nothing is trained.

Estimates above ln(number of marginal pairs) mean nothing; there are far more than e^I here. What
is compared are logits in units of their own spread: raw logits grow without limit, and with them
the scores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill.rules import Rule, above_zero, at_least, check, share

Estimator = Literal["mine", "infonce", "features"]
Guidance = Literal["one_way", "two_way"]

_HIDDEN = 64  # the paper: one hidden layer, of a width it does not tell
_AVERAGE = 0.01  # how fast the moving average of the marginal term follows; MINE's own code
_LARGEST_GRADIENT = 5.0
_MARGINALS = 64  # most marginal pairs of a row ...
_PAIRS = 16384  # ... and of all rows: what bounds the memory of a critic
_SPREAD = 1.0  # added to the variance of logits: with two classes they would all be -1 and 1


def log_mean_exp(scores: Tensor) -> Tensor:
    """Return ln of the mean of e^scores, over all entries."""
    return scores.flatten().logsumexp(0) - math.log(scores.numel())


def donsker_varadhan(joint: Tensor, marginal: Tensor) -> Tensor:
    """Lower bound of the mutual information, in nats, from the scores of a critic.

    Args:
        joint: scores of pairs that belong together.
        marginal: scores of pairs that do not.
    """
    return joint.mean() - log_mean_exp(marginal)


def infonce(x: Tensor, y: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Contrastive estimate of I(X, Y), in nats; at most ln(number of classes) of even classes.

    Args:
        x: rows, [B, D].
        y: rows, [B, D]; all of the same class as a row of x are its positives.
        labels: of both, int64 [B].
        temperature: of the cosines.
    """
    scores = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature
    same = labels[:, None] == labels[None, :]
    others = scores.logsumexp(1)
    positives = scores.masked_fill(~same, -torch.inf).logsumexp(1)
    return (positives - others - (same.sum(1) / len(labels)).log()).mean()


@dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    """Options of the mixture.

    Attributes:
        alpha: of the information between sizes (the paper: 1).
        beta: of the information about the class (the paper: 0.1).
        hinge: share of the most there can be up to which that is free.
        estimator: `mine` or `infonce`; `features` takes no information, but the distance of mean
            features (`losses/likeness.py`), and neither beta nor what real images say.
        guidance: `one_way` lets a set learn from larger ones alone, `two_way` from all others.
        temperature: of `infonce`.
        clip: largest score of `mine`.
        critic_lr: of Adam, for the critics of `mine`.
        critic_steps: of each critic before each estimate.
    """

    alpha: float = 1.0
    beta: float = 0.1
    hinge: float = 0.5
    estimator: Estimator = "mine"
    guidance: Guidance = "one_way"
    temperature: float = 0.2
    clip: float = 5.0
    critic_lr: float = 1e-3
    critic_steps: int = 1

    def __post_init__(self) -> None:
        check(*self.rules())

    def rules(self) -> list[Rule]:
        """Return the rules of these options, for a class that has others too."""
        return [
            at_least(self, 0, "alpha", "beta"),
            at_least(self, 1, "critic_steps"),
            above_zero(self, "temperature", "clip", "critic_lr"),
            share(self, "hinge"),
        ]


class Critic:
    """MINE for one pair of variables: T(x, y), trained to tell pairs from strangers.

    Args:
        widths: of x and of y.
        options: of the mixture.
        stream: of its weights and of the marginal pairs.
        device: where it works.
    """

    def __init__(
        self,
        widths: tuple[int, int],
        options: MixtureOptions,
        stream: torch.Generator,
        device: torch.device,
    ) -> None:
        self._options = options
        self._stream = stream
        self._network = _small_network(sum(widths), stream).to(device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=options.critic_lr)
        self._average: Tensor | None = None

    def forget(self) -> None:
        """Start the moving average again: the outputs are those of another network now."""
        self._average = None

    def fit(self, x: Tensor, y: Tensor) -> None:
        """Take one step towards the bound, for rows x [B, Dx] and y [B, Dy] that are paired."""
        joint, marginal = self._scores(x.detach(), y.detach())
        mean = log_mean_exp(marginal)
        seen = mean.detach()
        self._average = (
            seen
            if self._average is None
            else torch.logaddexp(self._average + math.log(1 - _AVERAGE), seen + math.log(_AVERAGE))
        )
        # The gradient of ln E[e^T], with the moving average in the denominator.
        loss = (mean - self._average).exp() - joint.mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step()

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the bound, differentiable in x and y."""
        return donsker_varadhan(*self._scores(x, y))

    def _scores(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        count = len(x)
        # Shifts of y against x in random order: all strangers of a row where there are few. Rows
        # that come class by class would share classes in some shifts, and in others not.
        order = torch.randperm(count, generator=self._stream)
        most = max(1, min(_MARGINALS, _PAIRS // count))
        shifts = 1 + torch.randperm(count - 1, generator=self._stream)[:most]
        partners = order[(torch.arange(count)[None, :] + shifts[:, None]).flatten() % count]
        own = order.repeat(len(shifts))
        strangers = torch.cat([x[own.to(x.device)], y[partners.to(y.device)]], 1)
        return self._score(torch.cat([x, y], 1)), self._score(strangers)

    def _score(self, pairs: Tensor) -> Tensor:
        clip = self._options.clip
        return clip * torch.tanh(self._network(pairs) / clip)


class Mixture:
    """The reward L_mix^k of each of several sets, and what it took to estimate it.

    Args:
        options: see `MixtureOptions`.
        num_classes: of the data, the width of the outputs.
        stream: decides everything that is random.
        device: where to work.
    """

    kind = "information"

    def __init__(
        self,
        options: MixtureOptions,
        num_classes: int,
        stream: torch.Generator,
        device: torch.device,
    ) -> None:
        self._options = options
        self._num_classes = num_classes
        self._device = device
        self._stream = stream
        self._critics: dict[str, Critic] = {}
        self.estimates: dict[str, Tensor] = {}

    def forget(self) -> None:
        """The classifier was drawn again: moving averages of its outputs mean nothing now."""
        for critic in self._critics.values():
            critic.forget()

    def __call__(
        self, real: Tensor | None, outputs: Mapping[int, Tensor], labels: Tensor, compared: int
    ) -> dict[int, Tensor]:
        """Estimate the reward of each set; critics take their steps first.

        Args:
            real: logits of real images, [B, num_classes].
            outputs: by IPC, logits of images of that set, [B, num_classes]; row i of all of them
                is of class labels[i]. Those without a gradient guide, and get no reward.
            labels: int64 [B].
            compared: how many classes these are, two or more.

        Returns:
            L_mix^k by IPC, each differentiable in its own outputs alone; the estimates behind
            it, in nats, are in `estimates`.
        """
        options = self._options
        assert real is not None
        real = normalised(real).detach()
        own = {size: normalised(logits) for size, logits in outputs.items()}
        classes = F.one_hot(labels, self._num_classes).to(real.dtype)
        free = options.hinge * math.log(compared)
        self.estimates = {}
        rewards = {}
        for size, rows in own.items():
            if not rows.requires_grad:
                continue
            reward = self._information(f"real-{size}", rows, real, labels)
            if options.beta:
                about_class = self._information(f"{size}-class", rows, classes, labels)
                reward = reward - options.beta * (about_class - free).clamp(min=0)
            for other, others in own.items() if options.alpha else ():
                if other > size or (other < size and options.guidance == "two_way"):
                    # A set is moved by its own reward alone, so the other one is a constant.
                    name = f"{size}-{other}"
                    between = self._information(name, rows, others.detach(), labels)
                    reward = reward + options.alpha * between
            rewards[size] = reward
        return rewards

    def _information(self, name: str, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        if self._options.estimator == "infonce":
            found = infonce(x, y, labels, self._options.temperature)
        else:
            if name not in self._critics:
                widths = (x.shape[1], y.shape[1])
                self._critics[name] = Critic(widths, self._options, self._stream, self._device)
            critic = self._critics[name]
            for _ in range(self._options.critic_steps):
                critic.fit(x, y)
            found = critic.estimate(x, y)
        self.estimates[name] = found.detach()
        return found


def normalised(logits: Tensor) -> Tensor:
    """Shift each row to mean 0, and divide it by sqrt(its variance + 1)."""
    return F.layer_norm(logits.float(), logits.shape[1:], eps=_SPREAD)


def _small_network(width: int, stream: torch.Generator) -> nn.Sequential:
    """Make T: linear, ReLU, linear; weights uniform in +- 1 / sqrt(inputs)."""
    layers = [nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((width, _HIDDEN), (_HIDDEN, 1))]
    with torch.no_grad():
        for layer in layers:
            bound = layer.in_features**-0.5
            for parameter in (layer.weight, layer.bias):
                parameter.copy_(
                    torch.empty(parameter.shape).uniform_(-bound, bound, generator=stream)
                )
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])
