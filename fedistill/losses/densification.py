"""Data densification: images of one class should not be copies of each other (G-VBSM).

Shao et al., "Generalized Large-Scale Data Condensation via Various Backbone and Statistical
Matching" (CVPR 2024), Sec. 3. With X the n images of a class as rows of d pixels, and l the
eigenvalues of X X^T / d, summed over the classes,

    KL( stop_gradient(softmax(l / 4)) || softmax(l) ):

copies have one eigenvalue n and else zeros, images without anything in common have equal ones.

Departures, each for a reason:
- the division by d. Without it the largest of ten images of a CIFAR-10 class is thousands above
  the next, both softmaxes are one-hot, and the gradient was exactly 0 for 199 of 200 draws;
- the images as they are, where theirs are cropped, all by one box: here each has a crop of its
  own, which would hide that two are alike;
- eigenvalues of a symmetric matrix (theirs: of a general one, real part). Their derivative needs
  no differences of eigenvalues, and so holds for copies too.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedistill.losses.base import Regularizer
from fedistill.losses.soft_labels import soft_kl
from fedistill.rules import above_zero, check

TEMPERATURE = 4.0  # tau of the authors' code
_SIDE = 32  # larger images are averaged down to about this


def densification(images: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Sum over the classes of how unevenly the eigenvalues of their images are spread.

    Args:
        images: normalised, [B, C, H, W].
        labels: int64 [B].
        temperature: that the eigenvalues are flattened by.

    Returns:
        Scalar; 0 where the images of each class are orthogonal and of one norm, and at one image
        a class.
    """
    rows = F.avg_pool2d(images, max(1, images.shape[-1] // _SIDE)).flatten(1)
    counts = labels.unique(return_counts=True)[1].tolist()
    of_class = rows[labels.argsort(stable=True)].split(counts)
    total = 0 * images.sum()  # a graph, so that it has a gradient
    for count in sorted(set(counts) - {1}):  # classes of one size share a call
        stacked = torch.stack([own for own in of_class if len(own) == count])
        spread = torch.linalg.eigvalsh(stacked @ stacked.mT / rows.shape[1])
        total = total + len(spread) * soft_kl(spread, spread.detach() / temperature, 1.0)
    return total


@dataclass(frozen=True, kw_only=True)
class Densification(Regularizer):
    """Data densification for any method whose batches hold several images of a class.

    Attributes:
        temperature: that the eigenvalues are flattened by.
    """

    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        check(above_zero(self, "temperature"))

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the term for a batch of images."""
        return densification(images, labels, self.temperature)
