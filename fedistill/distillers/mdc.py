"""MDC: one set whose first images are good sets too, for every size.

He et al., "Multisize Dataset Condensation" (ICLR 2024), on the loop of DREAM. Beside all N images
of a class, the first n are matched to the same real gradients. Which n changes: every `interval`
steps the distance of mean features between the first n images and the real ones is measured for
every n < N, and compared with that of the images as they were at the last review; every `review`
steps the subset whose distance has changed most on average is the most learnable, and is matched
until the next review. Images of the largest subset that was matched before and is smaller than
this one do not move meanwhile, so that what they learnt stays.

The first choice is n = 1. Sets of smaller IPC are cut out of the largest.

Departures, each for a reason: those of `condenser.py`, and
- subsets are made of images. The authors' code takes the first 4 n views in the order of crops,
  which are the first tiles of other images;
- `review` is 100 steps (theirs: 100 networks of 100 steps), as the runs are shorter here. With so
  few networks, distances measured by those of one review and those of another differ more by the
  networks than by the images: so old and new images are shown to the same ones;
- images that are not to move do not: theirs lose their gradient, and drift by their momentum.

Published (ConvNet with 128 filters, hard labels, IPC 1 / 10 / 50 cut out of one set of 50):
CIFAR-10 49.6 / 66.7 / 74.5, CIFAR-100 27.6 / 41.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.condenser import Condenser, Images
from fedistill.distillers.base import Task, Trace
from fedistill.distillers.condensation import Condensation
from fedistill.losses.base import Regularizer
from fedistill.matching_options import MatchingOptions
from fedistill.models.features import features_in_parts
from fedistill.reference import Reference
from fedistill.rules import Rule


@dataclass(frozen=True, kw_only=True)
class MDC(Condensation):
    """Options beside those of `Condensation` and of the loop.

    Attributes:
        review: steps after which the subset to match is chosen again.
    """

    review: int = 100

    def rules(self) -> list[Rule]:
        """See `MatchingOptions`."""
        return [
            *super().rules(),
            (
                self.review >= self.interval,
                f"review is {self.review} and interval is {self.interval}; accepted: a review of "
                "`interval` steps or more, as subsets are measured that often",
            ),
        ]

    @property
    def optimises_jointly(self) -> bool:
        """Its subsets are made to be sets."""
        return False

    def condenser(
        self, tasks: Sequence[Task], reference: Reference, sets: Sequence[Images]
    ) -> Condenser:
        """Return the loop that matches a subset too."""
        return _Subsets(self, reference, sets, tasks[0].terms(), self.review)


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
        self._before = sets[0].pixels.detach().clone()
        self._drifts: list[Tensor] = []
        self._learnt: set[int] = set()
        self._chosen = Trace(options.iterations)
        self.subset = 1
        self.kept = 0

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Beside the loss, which subset was matched and how many images were kept still."""
        return {**super().curves, **self._chosen.curves}

    def prepare(self, network: nn.Module, step: int) -> None:
        """Measure the subsets; review which of them is to be matched."""
        (own,) = self.sets
        if max(own.counts) < 2:
            return
        if step and step % self.options.restart % self.options.interval == 0:
            # The same networks and real images for both: what changed is the images alone.
            real = {
                label: features_in_parts(network, self.batches.of(label)).mean(0)
                for label in own.labels
            }
            now, then = (
                subset_distances(network, own, pixels, real, self.options)
                for pixels in (own.pixels.detach(), self._before)
            )
            self._drifts.append(now - then)
        if step and step % self._review == 0:
            self._learnt.add(self.subset)
            self.subset = 1 + int(torch.stack(self._drifts).mean(0).abs().argmax())
            self.kept = max((n for n in self._learnt if n < self.subset), default=0)
            self._drifts = []
            self._before = own.pixels.detach().clone()
        numbers = {"subset/matched": self.subset, "subset/kept": self.kept}
        self._chosen.note(step, {name: torch.tensor(it) for name, it in numbers.items()})

    def prefixes(self, own: Images, label: int) -> Sequence[int | None]:
        """All images of a class, and the subset where it is one."""
        return [None, self.subset] if self.subset < own.counts[label] else [None]

    def still(self, own: Images) -> Sequence[slice]:
        """The images of the subset that was learnt before."""
        starts = [(own.of(label).start, own.counts[label]) for label in own.labels]
        return [slice(start, start + min(self.kept, count)) for start, count in starts]


def subset_distances(
    network: nn.Module,
    own: Images,
    pixels: Tensor,
    real: Mapping[int, Tensor],
    options: MatchingOptions,
) -> Tensor:
    """Squared distance of mean features between real images and the first n, for n = 1 .. N - 1.

    Args:
        network: whose features these are.
        own: the set: which image is of which class.
        pixels: its images, now or at another time, [M, C, H, W].
        real: mean features of real images, [D], by class.
        options: of the loop.

    Returns:
        The mean over the classes that hold as many, [N - 1].
    """
    most = max(own.counts)
    sums, classes = torch.zeros(most - 1), torch.zeros(most - 1)
    for label in own.labels:
        views = mosaic.expand(pixels[own.of(label)], options.tiles)
        of_views = features_in_parts(network, views, options.chunk)
        of_images = of_views.view(own.counts[label], -1, of_views.shape[1]).mean(1)
        numbers = torch.arange(1, len(of_images) + 1, device=of_images.device)[:, None]
        found = (of_images.cumsum(0) / numbers - real[label]).square().sum(1)[: most - 1].cpu()
        sums[: len(found)] += found
        classes[: len(found)] += 1
    return sums / classes.clamp(min=1)
