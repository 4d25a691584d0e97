"""DREAM: images whose gradients are those of representative real images, for any network.

Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching" (ICCV 2023), on the
loop of IDC (`condenser.py`). In place of random real images, those nearest the centres of as many
clusters of a class's features are matched, found again every `interval` steps; random batches of
a few images have gradients far from that of the class. `choice: random` and `init: random` make it
IDC; `feature_weight` above 0 is the loss of DREAM+ (Liu et al., 2023). With `tiles: 1`: IDC-I.

Nothing of the teachers is used but that they label the images.

Departures, each for a reason: see `condenser.py`, and
- 1000 iterations by default (theirs: 2000 networks x 100 = 200,000), to suit a CPU;
- `lr` is in normalised units and for one image: theirs / 10 / std^2 at IPC 10;
- k-means with at most 20 rounds (`clusters.py`).

Published (ConvNet with 128 filters, hard labels, IPC 1 / 10 / 50): MNIST 95.7 / 98.6 / 99.2,
CIFAR-10 51.1 / 69.4 / 74.8, CIFAR-100 29.5 / 46.8 / 52.6; there `metric` is `l1` and `lr` 1.1e-4
for MNIST, `mse` and 8e-3 for CIFAR, `network_images` 500 and 2000.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedistill.condenser import Condenser, Images
from fedistill.distillers.base import Task
from fedistill.distillers.condensation import Condensation
from fedistill.reference import Reference


@dataclass(frozen=True, kw_only=True)
class DREAM(Condensation):
    """Options: those of `Condensation` and of `MatchingOptions`."""

    def condenser(
        self, tasks: Sequence[Task], reference: Reference, sets: Sequence[Images]
    ) -> Condenser:
        """Return the loop as it is."""
        return Condenser(self, reference, sets, tasks[0].terms())
