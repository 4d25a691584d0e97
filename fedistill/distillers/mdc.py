"""MDC: one set whose first images are good sets too, for every size.

He et al., "Multisize Dataset Condensation" (ICLR 2024), on the loop of DREAM. Beside all N images
of a class, the first n are matched to the same real gradients. Which n changes: every `review`
steps the distance of mean features between the first n images and the real ones is measured for
every n < N; the subset whose distance changed most since the review before is the most learnable,
and is matched until the next one. Images of the largest subset that was matched before and is
smaller than this one do not move meanwhile, so that what they learnt stays.

The first choice is n = 1. Sets of smaller IPC are cut out of the largest.

Departures, each for a reason: those of `condenser.py`, and
- subsets are made of images. The authors' code takes the first 4 n views in the order of crops,
  which are the first tiles of other images;
- `review` is 50 steps (theirs: 100 networks of 100 steps), as the runs are shorter here.

Published (ConvNet with 128 filters, hard labels, IPC 1 / 10 / 50 cut out of one set of 50):
CIFAR-10 49.6 / 66.7 / 74.5, CIFAR-100 27.6 / 41.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.condenser import Condenser, Images
from fedistill.distillers.base import Task
from fedistill.distillers.condensation import Condensation
from fedistill.losses.base import Regularizer
from fedistill.matching_options import MatchingOptions
from fedistill.models.features import penultimate
from fedistill.reference import RealBatches, Reference
from fedistill.rules import at_least, check


@dataclass(frozen=True, kw_only=True)
class MDC(Condensation):
    """Options beside those of `Condensation` and of the loop.

    Attributes:
        review: steps after which the subset to match is chosen again.
    """

    review: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check(at_least(self, 1, "review"))

    @property
    def optimises_jointly(self) -> bool:
        """Its subsets are made to be sets."""
        return False

    def condenser(self, task: Task, reference: Reference, own: Images) -> Condenser:
        """Return the loop that matches a subset too."""
        return _Subsets(self, reference, [own], task.terms(), self.review)


class _Subsets(Condenser):
    def __init__(
        self,
        options: MatchingOptions,
        reference: Reference,
        sets: Sequence[Images],
        terms: Sequence[tuple[float, Regularizer]],
        review: int,
    ) -> None:
        super().__init__(options, reference, sets, terms)
        self._review = review
        self._before: Tensor | None = None
        self._learnt: set[int] = set()
        self._subset = 1
        self._kept = 0
        self._pixels = sets[0].pixels.detach().clone()

    def prepare(self, network: nn.Module, step: int) -> None:
        """Review which subset is to be matched."""
        (own,) = self.sets
        most = max(own.counts)
        if step % self._review or most < 2:
            return
        found = subset_distances(network, own, self.batches, self.options)
        if self._before is not None:
            self._learnt.add(self._subset)
            self._subset = 1 + int((found - self._before).abs().argmax())
        self._before = found
        self._kept = max((n for n in self._learnt if n < self._subset), default=0)
        self._pixels = own.pixels.detach().clone()

    def prefixes(self, own: Images) -> Sequence[int | None]:
        """All images, and the subset where it is one."""
        return [None, self._subset] if self._subset < max(own.counts) else [None]

    def settle(self, own: Images) -> None:
        """Put back the images of the subset that was learnt before."""
        if not self._kept:
            return
        with torch.no_grad():
            for label in own.labels:
                part = own.of(label)
                kept = slice(part.start, min(part.start + self._kept, part.stop))
                own.pixels[kept] = self._pixels[kept]


def subset_distances(
    network: nn.Module, own: Images, batches: RealBatches, options: MatchingOptions
) -> Tensor:
    """Squared distance of mean features between real images and the first n, for n = 1 .. N - 1.

    Returns:
        The mean over the classes that hold as many, [N - 1].
    """
    most = max(own.counts)
    sums, classes = torch.zeros(most - 1), torch.zeros(most - 1)
    for label in own.labels:
        views = mosaic.expand(own.pixels.detach()[own.of(label)], options.tiles)
        of_views = _features(network, views, options.chunk)
        of_images = of_views.view(own.counts[label], -1, of_views.shape[1]).mean(1)
        numbers = torch.arange(1, len(of_images) + 1, device=of_images.device)[:, None]
        real = _features(network, batches.of(label), options.chunk).mean(0)
        found = (of_images.cumsum(0) / numbers - real).square().sum(1)[: most - 1].cpu()
        sums[: len(found)] += found
        classes[: len(found)] += 1
    return sums / classes.clamp(min=1)


@torch.no_grad()
def _features(network: nn.Module, images: Tensor, chunk: int) -> Tensor:
    return torch.cat([penultimate(network, part) for part in images.split(chunk)])
