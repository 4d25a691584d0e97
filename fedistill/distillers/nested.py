"""Nested sets: one set whose first images are a set too, for every size that is asked for.

Our own form of MDC (`mdc.py`; He et al., "Multisize Dataset Condensation", ICLR 2024), on the loop
of DREAM. MDC matches all images and one subset, chosen anew as it goes; here every step matches all
sizes that are wanted, and shares more than the real gradients: images of a class are cut into parts
at these sizes, for 1, 10 and 50 into the first image, the next 9 and the last 40. Signatures are
means over images, so that of each size is a mean of those of its parts,

    g_k = sum_p n_p g_p / k,     loss = sum_k k D(g_k, g_real),

and one pass over the views of the largest size serves them all. It costs what one size does, and
keeps 50 images a class where three sets would be 61.

The factor k makes an image's pull that of one image, as in `condenser.py`; images of a part that
is in several sizes are pulled by all of them, and move by the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedistill.condenser import Condenser, Distance, Images, Show
from fedistill.distillers.base import Task
from fedistill.distillers.condensation import Condensation
from fedistill.losses.matching import matching_gradients
from fedistill.reference import Reference
from fedistill.rules import Rule


@dataclass(frozen=True, kw_only=True)
class Nested(Condensation):
    """Options beside those of `Condensation` and of the loop.

    Attributes:
        subsets: images per class of the sets that are to be cut out of the largest one; a client
            that makes a part of the images takes the same share of each. None: those of the config.
    """

    subsets: tuple[int, ...] | None = None

    def rules(self) -> list[Rule]:
        """See `MatchingOptions`."""
        wanted = self.wanted
        return [
            *super().rules(),
            (
                list(wanted) == sorted(set(wanted)) and min((1, *wanted)) > 0,
                f"subsets is {list(wanted)}; accepted: sizes from 1 up that rise, each once",
            ),
            (
                len(wanted) < self.batch_synthetic,
                f"subsets has {len(wanted)} sizes and batch_synthetic is {self.batch_synthetic}; "
                "accepted: a view of each part, and so fewer sizes",
            ),
        ]

    @property
    def wanted(self) -> tuple[int, ...]:
        """The subsets; none where nobody has named any."""
        return self.subsets or ()

    def for_sizes(self, ipc: Sequence[int]) -> "Nested":
        """Match every size of the config but the largest."""
        return self if self.subsets is not None else replace(self, subsets=tuple(sorted(ipc)[:-1]))

    @property
    def optimises_jointly(self) -> bool:
        """Its subsets are made to be sets."""
        return False

    def condenser(
        self, tasks: Sequence[Task], reference: Reference, sets: Sequence[Images]
    ) -> Condenser:
        """Return the loop that matches all sizes at once."""
        return _Parts(self, reference, sets, tasks[0].terms())


class _Parts(Condenser):
    options: Nested

    def prepare(self, network: nn.Module, step: int) -> None:
        """Forget the losses of the step before."""
        self._subset_losses: dict[int, Tensor] = {}

    def matched(self, losses: Tensor) -> dict[int, Tensor]:
        """Name the losses of the subsets too."""
        return {**self._subset_losses, **super().matched(losses)}

    def match_set(
        self, network: nn.Module, own: Images, label: int, show: Show, distance: Distance
    ) -> Tensor:
        """Match every size by one pass over the parts; the loss is that of all images."""
        ends = sizes_of(own.counts[label], own.ipc, self.options.wanted)
        starts = [0, *ends[:-1]]
        leaves = [own.leaves(label, end, start) for start, end in zip(starts, ends, strict=True)]
        quotas = share_out([len(it) * self.options.tiles**2 for it in leaves],
                           self.options.batch_synthetic)  # fmt: skip
        parts = [show(own.views(it, most)) for it, most in zip(leaves, quotas, strict=True)]
        found: list[Tensor] = []

        def total(signatures: Sequence[Sequence[Tensor]]) -> Tensor:
            sums = [torch.zeros_like(entry) for entry in signatures[0]]
            losses = []
            for signature, start, end in zip(signatures, starts, ends, strict=True):
                sums = [
                    entry + (end - start) * new for entry, new in zip(sums, signature, strict=True)
                ]
                losses.append(distance([entry / end for entry in sums]))
            found[:] = [loss.detach() for loss in losses]
            return torch.stack([end * it for end, it in zip(ends, losses, strict=True)]).sum()

        slopes, _ = matching_gradients(
            network,
            parts,
            total,
            features=self.options.feature_weight > 0,
            chunk=self.options.chunk,
        )
        for number, (start, (views, _), slope) in enumerate(
            zip(starts, parts, slopes, strict=True)
        ):
            (gradient,) = torch.autograd.grad(views, leaves[number], slope)
            pull = own.seen(views, leaves[number]) * gradient / (len(ends) - number)
            own.add_gradient(pull, own.of(label).start + start)
        for size in self.options.wanted:
            loss = found[ends.index(size_of(size, own.counts[label], own.ipc))]
            self._subset_losses[size] = self._subset_losses.get(size, torch.zeros_like(loss)) + loss
        return found[-1]


def sizes_of(count: int, ipc: int, subsets: Sequence[int]) -> list[int]:
    """Return the sizes to match among the images of a class, rising; the last is all of them.

    Args:
        count: of the images that this client makes of the class, at least 1.
        ipc: of the whole set; 0: not known, so this client makes it all.
        subsets: images per class of the sets to be cut out of it.
    """
    return sorted({*(size_of(size, count, ipc) for size in subsets), count})


def size_of(subset: int, count: int, ipc: int) -> int:
    """Return how many of `count` images of a class stand for a subset; see `sizes_of`."""
    return min(count, max(1, round(subset * count / (ipc or count))))


def share_out(wanted: Sequence[int], most: int) -> list[int]:
    """Deal at most `most` views to parts that want so many: equally, to small ones what they want.

    Returns:
        For each part at least 1 view, in all no more than `most` where there are as many parts.
    """
    left, quotas = most, [0] * len(wanted)
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    for place, number in enumerate(order):
        quotas[number] = max(1, min(wanted[number], left // (len(order) - place)))
        left -= quotas[number]
    return quotas
