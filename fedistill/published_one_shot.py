"""What others reach with one upload on Dirichlet splits.

Source: Z. Tang, Y. Zhang, P. Dong, Y. Cheung, A. C. Zhou, B. Han, X. Chu, "FuseFL: One-Shot
Federated Learning through the Lens of Causality with Progressive Model Fusion", NeurIPS 2024: five
clients, ResNet-18, 200 local epochs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

PAPER = "FuseFL (NeurIPS 2024)"
CLIENTS = 5
ALPHAS = (0.1, 0.3, 0.5)


class Rival(NamedTuple):
    """A method and what it leaves behind.

    Attributes:
        name: of the method.
        leaves: "one model", or what is needed to classify an image.
        top1: in percent for each of `ALPHAS`.
    """

    name: str
    leaves: str
    top1: Sequence[float]


_ONE, _ALL, _FUSED = "one model", "all clients' models", "one fused model, several uploads"


def _rivals(
    fedavg: Sequence[float],
    dense: Sequence[float],
    ensemble: Sequence[float],
    fusefl: Sequence[float],
) -> tuple[Rival, ...]:
    return (
        Rival("FedAvg, 1 round", _ONE, fedavg),
        Rival("DENSE", _ONE, dense),
        Rival("ensemble", _ALL, ensemble),
        Rival("FuseFL", _FUSED, fusefl),
    )


RIVALS: Mapping[str, tuple[Rival, ...]] = {
    "mnist": _rivals(
        (48.2, 72.9, 90.6), (66.6, 76.5, 95.8), (86.8, 96.8, 97.2), (97.2, 98.4, 98.5)
    ),
    "fashionmnist": _rivals(
        (41.7, 83.0, 83.7), (50.3, 84.0, 85.9), (67.7, 87.3, 89.4), (83.2, 89.9, 90.5)
    ),
    "cifar10": _rivals(
        (23.9, 27.7, 43.7), (50.3, 59.8, 62.2), (57.5, 77.4, 79.9), (73.8, 84.6, 84.3)
    ),
    "svhn": _rivals((31.7, 61.5, 56.1), (55.3, 79.6, 80.0), (65.3, 88.3, 85.7), (80.3, 91.1, 90.9)),
    "cifar100": _rivals(
        (4.6, 11.6, 12.1), (32.0, 37.3, 42.1), (35.7, 49.4, 53.4), (36.9, 45.1, 49.3)
    ),
}
