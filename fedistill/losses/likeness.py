"""Likeness of sets of different sizes: the distance between what a network sees in them on average.

The simplest way for larger sets to guide smaller ones, beside which mutual information
(`losses/bottleneck.py`) has to prove itself: a set is rewarded for class means of features that are
those of the larger sets,

    R^k = - alpha * sum_{j > k} mean_c  || m_k^c - m_j^c ||^2 / || m_j^c ||^2,

with m_k^c the mean penultimate feature of views of class c in the set of size k. It is the distance
of distribution matching (Zhao and Bilen, WACV 2023), between synthetic sets.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from fedistill.losses.bottleneck import MixtureOptions

_TINY = 1e-12


class Likeness:
    """The reward of each of several sets.

    Args:
        options: its `alpha` and `guidance`.
    """

    kind = "likeness"

    def __init__(self, options: MixtureOptions) -> None:
        self._options = options
        self.estimates: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Nothing is kept from step to step."""

    def __call__(
        self, real: Tensor | None, outputs: Mapping[int, Tensor], labels: Tensor, compared: int
    ) -> dict[int, Tensor]:
        """Compare each set with the others.

        Args:
            real: not used: sets are matched to real images already.
            outputs: by IPC, features of images of that set, [B, D]; row i of all of them is of
                class labels[i]. Those without a gradient guide, and get no reward.
            labels: int64 [B].
            compared: how many classes these are.

        Returns:
            R^k by IPC, each differentiable in its own outputs alone; the distances behind it are in
            `estimates`.
        """
        means = {size: _class_means(rows, labels, compared) for size, rows in outputs.items()}
        self.estimates = {}
        rewards = {}
        for size, own in means.items():
            if not own.requires_grad:
                continue
            reward = 0 * own.sum()  # the largest has nobody to follow
            for other, others in means.items():
                if other > size or (other < size and self._options.guidance == "two_way"):
                    wanted = others.detach()  # a set is moved by its own reward alone
                    length = wanted.square().sum(1).clamp(min=_TINY)
                    distance = ((own - wanted).square().sum(1) / length).mean()
                    self.estimates[f"{size}-{other}"] = distance.detach()
                    reward = reward - self._options.alpha * distance
            rewards[size] = reward
        return rewards


def _class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean row of each class, [classes, D], in rising order of the labels."""
    place = labels.unique(return_inverse=True)[1]
    member = F.one_hot(place, classes).to(rows.dtype)
    return member.T @ rows / member.sum(0)[:, None]
