"""Random real images: the rival that every method has to beat.

With soft labels it is a strong one: random images come close to distilled ones, and beat several
methods (DD-Ranking, 2025). Equation: none. The order of a class is one random permutation,
which depends on the seed and the client.

Published accuracy with hard labels (CIFAR-10, ConvNet, IPC 1 / 10 / 50): 14.4 / 26.0 / 43.4
(Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, Table 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedistill.distillers.base import Task
from fedistill.distillers.coreset import Coreset
from fedistill.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Random(Coreset):
    """It has no options."""

    def choose(self, task: Task, mine: Tensor, label: int, count: int) -> Tensor:
        """Take the start of a permutation, the same in every attempt."""
        stream = generator(task.seed, "recover", task.partition_id, "order", label)
        return torch.randperm(len(mine), generator=stream)[:count]
