"""MIBDC: sets of several sizes in one run, that guide each other by mutual information.

"Multi-size dataset condensation by a mixture of information bottlenecks" (MIBDC), on the loop of
DREAM (`condenser.py`). The sets of all IPC share networks, real images and their gradients, and
each is rewarded for what its outputs say about real images, little more than the class, and about
the outputs of the other sets (`losses/bottleneck.py`, Eq. 3.12):

    L = sum_k [ L_match^k - weight * mean(L_match^k) * L_mix^k ].

Choices where the paper is silent or contradicts itself:
- L_mix is subtracted: the paper adds what it wants to be large (Eq. 3.13);
- its weight is in units of the running mean of each set's own L_match: the paper tells no scale;
- the denominators of its matching loss are 0 at first (Eq. 3.3): `metric: relative` takes the real
  gradient's norm, and `l1` (the default) and `mse` are DREAM's own for MNIST and for CIFAR;
- `guidance: one_way` lets sets learn from larger ones alone;
- rows are paired class by class: `samples` views of each class and set, drawn with replacement.

Forms beside the paper's, to see what of it helps: `guidance: two_way`; `estimator: infonce`, a
contrast in place of MINE; `estimator: features`, no information at all: sets follow the mean
features of larger ones (`losses/likeness.py`).

A client may hold so few classes of a small set that comparing it with the others would leave out
most of theirs: it is matched alone, and the others guide each other (`guidance.comparable`).

Published (ConvNet with 128 filters, hard labels, IPC 1 / 10 / 50): MNIST 95.8 / 98.6 / 99.2,
CIFAR-10 52.5 / 70.9 / 75.2, CIFAR-100 31.3 / 47.4; alpha 1, beta 0.1, the one of nine cells that
beats DREAM's 51.1 at IPC 1 of CIFAR-10 (alpha 0.1 / 0.5 / 1 by beta 0.1 / 0.5 / 1: 49.1 48.3 47.6,
50.7 49.5 48.7, 52.5 50.9 49.6).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fedistill.condenser import Condenser, Images
from fedistill.config import ModelConfig
from fedistill.distillers.base import Distilled, Task
from fedistill.distillers.condensation import Condensation
from fedistill.guidance import GuidanceOptions, MixtureGuide
from fedistill.images import DataSpec
from fedistill.matching_options import MatchingOptions
from fedistill.reference import Reference
from fedistill.rules import Rule


@dataclass(frozen=True, kw_only=True)
class MIBDC(Condensation, GuidanceOptions):
    """Options: those of `Condensation`, of the loop and of the guidance."""

    def rules(self) -> list[Rule]:
        """See `MatchingOptions`."""
        return [*MatchingOptions.rules(self), *GuidanceOptions.rules(self)]

    @property
    def cotrains_sizes(self) -> bool:
        """That is what it is for."""
        return True

    def check(self, model: nn.Module, config: ModelConfig, spec: DataSpec) -> None:
        """Refuse one class: mutual information between sets is information about the class."""
        super().check(model, config, spec)
        self.check_classes(spec, "distill")

    def distill_sizes(self, tasks: Sequence[Task]) -> list[Distilled]:
        """Optimise the images of all sets side by side."""
        return self.together(tasks)

    def condenser(
        self, tasks: Sequence[Task], reference: Reference, sets: Sequence[Images]
    ) -> Condenser:
        """Return the loop in which the sets guide each other."""
        guide = MixtureGuide(self, self, reference, sets)
        return Condenser(self, reference, sets, tasks[0].terms(), guide)
