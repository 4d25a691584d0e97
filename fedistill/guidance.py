"""Sets of several sizes guide each other while they are matched to the same images (MIBDC)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.condenser import Images
from fedistill.distillers.base import Trace
from fedistill.errors import ConfigError
from fedistill.images import DataSpec
from fedistill.losses.bottleneck import Mixture, MixtureOptions
from fedistill.losses.likeness import Likeness
from fedistill.matching_options import MatchingOptions
from fedistill.models.features import penultimate
from fedistill.reference import RealBatches, Reference
from fedistill.rules import Rule, at_least, below_one

_AVERAGE = 0.05  # how fast the mean loss of the matching is followed
_CURVES = 50  # most that are kept of the estimates: nine sizes, of which a figure can show few

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(MixtureOptions):
    """Options of the guidance beside those of the mixture.

    Attributes:
        weight: of each set's L_mix, in units of the running mean of its matching loss; 0: none.
        samples: views of each class and set in every estimate; with `mine` two or more, as
            strangers of a class's only row are never of its class, and the bound has no end.
        warmup: share of the steps before it begins.
    """

    weight: float = 0.1  # with 1 sets of one image were worse than without (experiments/LOG.md)
    samples: int = 8
    warmup: float = 0.05

    def rules(self) -> list[Rule]:
        """See `MixtureOptions`."""
        return [
            *super().rules(),
            at_least(self, 0, "weight"),
            at_least(self, 2 if self.estimator == "mine" else 1, "samples"),
            below_one(self, "warmup"),
        ]

    @property
    def least_classes(self) -> int:
        """Classes that sets must share to be compared: information tells one from another."""
        return 1 if self.estimator == "features" else 2

    def check_classes(self, spec: DataSpec, section: str) -> None:
        """Refuse data whose classes are too few for guidance.

        Args:
            spec: of the data set.
            section: of the config that the options are in.

        Raises:
            ConfigError: what is accepted.
        """
        if self.weight and spec.num_classes < self.least_classes:
            raise ConfigError(
                f"{section}.weight is {self.weight:g}, and {spec.name} has one class, "
                f"'{spec.class_names[0]}': mutual information between sets is information about "
                "the class, and there is none; accepted: weight 0, estimator: features, or more "
                "classes"
            )


class MixtureGuide:
    """Adds the gradient of -weight * mean(L_match^k) * L_mix^k to every set.

    Args:
        options: of the guidance.
        matching: of the loop.
        reference: what the sets are matched to.
        sets: those that are optimised.
        fixed: those that guide and are not moved.
    """

    def __init__(
        self,
        options: GuidanceOptions,
        matching: MatchingOptions,
        reference: Reference,
        sets: Sequence[Images],
        fixed: Sequence[Images] = (),
    ) -> None:
        self._options = options
        self._matching = matching
        self._moved = {own.ipc: place for place, own in enumerate(sets)}
        self._sets, self._labels = comparable([*sets, *fixed], options.least_classes)
        left_out = {own.ipc for own in [*sets, *fixed]} - {own.ipc for own in self._sets}
        if options.weight and left_out:
            _log.warning(
                "the sets of IPC %s here have too few classes in common with the others: they are "
                "matched without guidance",
                sorted(left_out),
            )
        if options.weight and any(len(own.labels) > len(self._labels) for own in self._sets):
            _log.warning(
                "the sets of IPC %s here are compared on the classes that all of them hold, %d of "
                "%d: images of the other classes are matched without guidance",
                [own.ipc for own in self._sets],
                len(self._labels),
                max(len(own.labels) for own in self._sets),
            )
        rows = torch.tensor(self._labels, dtype=torch.int64)
        self._rows = rows.repeat_interleave(options.samples).to(reference.device)
        self._stream = reference.stream("guidance")
        self._rewards: Mixture | Likeness
        if options.estimator == "features":
            self._rewards = Likeness(options)
        else:
            self._rewards = Mixture(
                options, reference.spec.num_classes, reference.stream("critics"), reference.device
            )
        self._mean_losses: Tensor | None = None
        self._step = 0
        self._trace = Trace(matching.iterations)

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """What was estimated over the steps: `information/real-10` in nats, or `likeness/1-10`.

        Of the estimates of many sizes those of the smallest.
        """
        return self._trace.curves

    def restart(self) -> None:
        """Forget the averages: they are of another network."""
        self._rewards.forget()
        self._mean_losses = None

    def add(self, network: nn.Module, batches: RealBatches, losses: Tensor) -> None:
        """Add to the gradient of the images of each set that is optimised."""
        step, self._step = self._step, self._step + 1
        mean = self._mean_losses
        self._mean_losses = losses if mean is None else torch.lerp(mean, losses, _AVERAGE)
        options = self._options
        late = step >= options.warmup * self._matching.iterations
        if not (options.weight and late and self._labels):
            return
        answers = None
        if options.estimator != "features":
            real = [batches.some(label, options.samples, self._stream) for label in self._labels]
            with torch.no_grad():
                answers = self._through(network, torch.cat(real))
        leaves: dict[int, Tensor] = {}
        views: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        for own in self._sets:
            moved = own.ipc in self._moved
            leaves[own.ipc] = own.pixels.detach().requires_grad_(moved)
            views[own.ipc] = self._views(own, leaves[own.ipc])
            with torch.no_grad():
                outputs[own.ipc] = self._through(network, views[own.ipc])
            outputs[own.ipc].requires_grad_(moved)
        rewards = self._rewards(answers, outputs, self._rows, len(self._labels))
        for own in self._sets:
            if own.ipc in rewards:
                (by_output,) = torch.autograd.grad(rewards[own.ipc], outputs[own.ipc])
                by_view = self._back(network, views[own.ipc].detach(), by_output)
                (slope,) = torch.autograd.grad(views[own.ipc], leaves[own.ipc], by_view)
                unit = self._mean_losses[self._moved[own.ipc]]
                seen = (options.samples / (own.per_image * self._matching.tiles**2)).clamp(max=1)
                own.add_gradient(-options.weight * unit * seen * own.per_image * slope)
        found = islice(self._rewards.estimates.items(), _CURVES)
        self._trace.note(step, {f"{self._rewards.kind}/{name}": it for name, it in found})

    def _views(self, own: Images, pixels: Tensor) -> Tensor:
        """Return `samples` random views of each class, drawn with replacement."""
        tiles = self._matching.tiles
        chosen = []
        for label in self._labels:
            first, end = (tiles**2 * place for place in (own.of(label).start, own.of(label).stop))
            size = (self._options.samples,)
            chosen.append(torch.randint(first, end, size, generator=self._stream))
        return mosaic.expand_some(pixels, tiles, torch.cat(chosen))

    def _through(self, network: nn.Module, views: Tensor) -> Tensor:
        """Return what sets are compared by, a chunk at a time."""
        return torch.cat([self._read(network, it) for it in views.split(self._matching.chunk)])

    def _read(self, network: nn.Module, views: Tensor) -> Tensor:
        """Return the network's logits for some views, or its features."""
        if self._options.estimator == "features":
            return penultimate(network, views)
        logits: Tensor = network(views)
        return logits

    def _back(self, network: nn.Module, views: Tensor, slopes: Tensor) -> Tensor:
        """Return the gradient of the views by that of what was read of them, chunk by chunk."""
        chunk = self._matching.chunk
        found = []
        for part, slope in zip(views.split(chunk), slopes.split(chunk), strict=True):
            part.requires_grad_()
            found.append(torch.autograd.grad(self._read(network, part), part, slope)[0])
        return torch.cat(found)


def comparable(sets: Sequence[Images], classes: int = 2) -> tuple[list[Images], list[int]]:
    """Choose the sets that can be compared, and the classes that all of these hold.

    A client may hold two classes of a small set and all of a large one. Sets with the fewest
    classes are left out where two or more others then share more of them.

    Args:
        sets: in any order.
        classes: the fewest that sets must share to be compared.

    Returns:
        Sets in rising order with the classes that all of them hold. Where no two sets share enough
        it is the set with the most, which can still be compared with real images; nothing where
        that has too few.
    """
    ranked = sorted(sets, key=lambda own: own.ipc)
    found = []
    for least in sorted({len(own.labels) for own in ranked}):
        chosen = [own for own in ranked if len(own.labels) >= least]
        common = set.intersection(*(set(own.labels) for own in chosen))
        if len(chosen) >= 2 and len(common) >= classes:
            found.append((chosen, sorted(common)))
    if not found:  # of sets with as many classes the largest
        found = [([own], own.labels) for own in reversed(ranked) if len(own.labels) >= classes]
    return max(found, key=lambda group: len(group[1]), default=([], []))
