"""Herding: real images whose mean feature stays close to that of their class.

Welling, "Herding Dynamical Weights to Learn" (ICML 2009), in the greedy form of Rebuffi et al.,
"iCaRL" (CVPR 2017), Algorithm 4: with features f of unit length and their class mean m,

    p_k = argmin_x || m - (f(x) + f(p_1) + ... + f(p_{k-1})) / k ||,   x not chosen before.

Choices: f is what the teacher's classifier is given; those of several teachers stand side by
side, scaled to weigh alike. iCaRL's code may choose an image again; here it may not.
Cost: one forward pass for each image of the shard's classes asked for.

Published accuracy with hard labels (CIFAR-10, ConvNet, IPC 1 / 10 / 50): 21.5 / 31.6 / 40.4
(Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, Table 1).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedistill.distillers.coreset import FeatureCoreset


@dataclass(frozen=True, kw_only=True)
class Herding(FeatureCoreset):
    """It has no options."""

    def order(self, features: Tensor, count: int) -> Tensor:
        """Herd features of unit length."""
        return herd(F.normalize(features), count)


def herd(features: Tensor, count: int) -> Tensor:
    """Choose rows, one after the other, so that their mean is near the mean of all.

    Args:
        features: [n, D].
        count: at most n.

    Returns:
        Different rows in the order of choice, int64 [count].
    """
    mean, squares = features.mean(0), features.square().sum(1)
    total = torch.zeros_like(mean)
    chosen: list[int] = []
    for number in range(1, count + 1):
        # k^2 || m - (f + total) / k ||^2 = || missing - f ||^2: one product instead of n x D sums.
        missing = number * mean - total
        distance = squares - 2 * (features @ missing)
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
        total += features[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64)
