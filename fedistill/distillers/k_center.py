"""k-center: real images that leave no image of their class far from the nearest chosen one.

Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach"
(ICLR 2018), Algorithm 1 (greedy k-center, a 2-approximation): with features f,

    p_k = argmax_x min_{j < k} || f(x) - f(p_j) ||.

Choices: the first image is the one nearest the class mean (theirs: a labelled pool is given), so
nothing is random; f is what the teacher's classifier is given; those of several teachers stand
side by side, scaled to weigh alike. Only the greedy part: their mixed integer programme, which
mends outliers, is left out as everywhere in the field.
Cost: one forward pass for each image of the shard's classes asked for.

Published accuracy with hard labels (CIFAR-10, ConvNet, IPC 1 / 10 / 50): 21.5 / 14.7 / 27.0
(Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, Table 1); later tables
have 23.3 / 36.4 / 48.7.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedistill.distillers.coreset import FeatureCoreset


@dataclass(frozen=True, kw_only=True)
class KCenter(FeatureCoreset):
    """It has no options."""

    def order(self, features: Tensor, count: int) -> Tensor:
        """Take the centres as they are found."""
        return k_center(features, count)


def k_center(features: Tensor, count: int) -> Tensor:
    """Choose rows, each the farthest from those before; the first is nearest the mean.

    Args:
        features: [n, D].
        count: at most n.

    Returns:
        Different rows in the order of choice, int64 [count].
    """
    around = features - features.mean(0)
    squares = around.square().sum(1)
    chosen: list[int] = []
    place = squares.argmin()
    nearest = torch.full_like(squares, torch.inf)
    for _ in range(count):
        chosen.append(int(place))
        # || x - p ||^2 as one product instead of n x D differences; only large ones matter.
        distance = squares + squares[place] - 2 * (around @ around[place])
        nearest = torch.minimum(nearest, distance)
        nearest[place] = -torch.inf  # an equal image may be chosen, this one not again
        place = nearest.argmax()
    return torch.tensor(chosen, dtype=torch.int64)
