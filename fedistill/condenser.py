"""Gradient matching: the loop that DREAM, MIBDC, MDC, nested sets and co-training share.

Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC, ICML 2022),
Algorithm 1, as DREAM (Liu et al., ICCV 2023) uses it. A fresh random network is trained on real
images; before each of its steps, for every class,

    real images and views of synthetic ones are augmented by the same draw,
    the images descend  D(g_synthetic, g_real) + feature_weight * || f_synthetic - f_real ||^2,

with g the gradient of the network's loss and f its mean features (`losses/matching.py`). An image
is a mosaic of tiles x tiles small ones; each, enlarged to the frame, is a view (IDC's
multi-formation).

Several sets may descend side by side: they share networks, real images and their signatures.
Draws are made for each class and each set on its own, so that without a guide a set ends as that
of a run of its own, to the bit.

Memory does not grow with IPC: at most `batch_synthetic` random views of a class are matched in a
step, at most `chunk` of them are in the network with a graph at once, and only one class of one set
at a time. Extra terms are given up to `batch_synthetic` views in one graph: what they say of many
is not what they say of a few. All of it is float32: a gradient of gradients needs its digits.

Departures from both codes:
- all classes descend in one step after a round of all of them. Theirs steps after each class with
  one optimiser over all images, whose momentum of 0.5 has faded by the time that the class is up
  again: an image moves as far;
- the learning rate is that of one image: the gradient of a class is multiplied by its number of
  images, which is what "lr x IPC / 10" does in theirs; and by the share of its views that are
  shown: an image of a large set moves as far as one of a small set when it is its turn, and not
  further because turns are rare (measured: experiments/LOG.md);
- the learning rate ends at 0 (`schedule: constant` is theirs): a hundredth of their steps ends
  better on what it has found than somewhere around it (experiments/LOG.md);
- pixels stay between black and white at every step, in normalised units;
- networks are trained on shifted and mirrored images with CutMix (theirs: DSA and CutMix).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from fedistill import augmentation, mosaic
from fedistill.distillers.base import Trace
from fedistill.losses.base import Regularizer
from fedistill.losses.matching import matching_gradient, signature, signature_distance
from fedistill.matching_options import MatchingOptions
from fedistill.reference import Answer, Learner, RealBatches, Reference
from fedistill.training import learning_rate_factor, set_learning_rate

Show = Callable[[Tensor], tuple[Tensor, Tensor]]
Distance = Callable[[Sequence[Tensor]], Tensor]


class Guide(Protocol):
    """What moves images beside the matching: information between sets, say."""

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """What is worth a look: (step, value) by name."""

    def restart(self) -> None:
        """Learn that a fresh network has taken over."""

    def add(self, network: nn.Module, batches: RealBatches, losses: Tensor) -> None:
        """Add to the gradient of the images of each set, which holds that of the matching.

        Args:
            network: of this step.
            batches: the real images of this step.
            losses: of the matching of each set over all classes, [number of sets].
        """


class Images:
    """One set that is being optimised, class by class.

    `per_image` is how many images each one's class has, [M, 1, 1, 1]: what its gradient is
    multiplied by.

    Args:
        start: normalised images, float32 [M, C, H, W].
        counts: images of each class, [num_classes].
        ipc: of the set, its name.
        options: of the loop.
        reference: what they are matched to; they live on its device.
    """

    def __init__(
        self,
        start: Tensor,
        counts: Sequence[int],
        ipc: int,
        options: MatchingOptions,
        reference: Reference,
    ) -> None:
        assert len(start) == sum(counts), (len(start), counts)
        self.pixels = start.detach().to(reference.device).clone().requires_grad_()
        self.counts = list(counts)
        self.ipc = ipc
        every = torch.tensor(self.counts).repeat_interleave(torch.tensor(self.counts))
        self.per_image = every.to(reference.device)[:, None, None, None]
        self._ends = list(accumulate(counts))
        self._options = options
        self._choices = reference.stream("views", ipc)

    @property
    def labels(self) -> list[int]:
        """Classes of which there are images."""
        return [label for label, count in enumerate(self.counts) if count]

    def of(self, label: int) -> slice:
        """Return where the images of a class are."""
        return slice(self._ends[label] - self.counts[label], self._ends[label])

    def leaves(self, label: int, first: int | None = None, start: int = 0) -> Tensor:
        """Return the images of a class without their past, to take gradients of, [B, C, H, W].

        Args:
            label: of the class.
            first: how many, from the first; None: all.
            start: how many of these are left out, from the first.
        """
        return self.pixels.detach()[self.of(label)][start:first].requires_grad_()

    def views(self, leaves: Tensor, most: int | None = None) -> Tensor:
        """Return views of images, at most `most` (None: `batch_synthetic`) random ones."""
        tiles = self._options.tiles
        most = self._options.batch_synthetic if most is None else most
        count = len(leaves) * tiles**2
        if count <= most:
            return mosaic.expand(leaves, tiles)
        chosen = torch.randperm(count, generator=self._choices)[:most]
        return mosaic.expand_some(leaves, tiles, chosen)

    def seen(self, views: Tensor, leaves: Tensor) -> float:
        """Return which share of the views of some images these are."""
        return len(views) / (len(leaves) * self._options.tiles**2)

    def add_gradient(self, gradient: Tensor, start: int = 0) -> None:
        """Add to the gradient of the images from one on, [B, C, H, W]."""
        assert self.pixels.grad is not None
        self.pixels.grad[start : start + len(gradient)] += gradient


class Condenser:
    """One run of the loop over one or several sets.

    Args:
        options: of the loop.
        reference: what the sets are matched to.
        sets: are optimised in place.
        terms: extra ones with their weights; they see views of one class as they are, and move an
            image as far as the matching does where as many of its views are shown.
        guide: moves the images too.
    """

    def __init__(
        self,
        options: MatchingOptions,
        reference: Reference,
        sets: Sequence[Images],
        terms: Sequence[tuple[float, Regularizer]] = (),
        guide: Guide | None = None,
    ) -> None:
        self.options = options
        self.reference = reference
        self.sets = sets
        self.batches = RealBatches(options, reference)
        self._terms = terms
        self._guide = guide
        self._optimizer = torch.optim.SGD(
            [own.pixels for own in sets], lr=options.lr, momentum=options.momentum
        )
        self._trace = Trace(options.iterations)
        self._changes = reference.streams("augmentation")
        self._labels = sorted({label for own in sets for label in own.labels})

    def run(self, told: Callable[[Tensor], None] = lambda loss: None) -> None:
        """Optimise the sets.

        Args:
            told: called after each step with the loss of every set, [number of sets].
        """
        network = None
        for step in range(self.options.iterations if self._labels else 0):
            if step % self.options.restart == 0:
                network = Learner(self.options, self.reference, step // self.options.restart)
                if self._guide is not None:
                    self._guide.restart()
            assert network is not None
            if step % self.options.restart % self.options.interval == 0:
                self.batches.choose(network.module, self._labels)
            self.prepare(network.module, step)
            told(self._descend(network.module, step))
            network.learn(self.batches)

    def prepare(self, network: nn.Module, step: int) -> None:
        """Do what a method does before a step; nothing here."""

    def prefixes(self, own: Images, label: int) -> Sequence[int | None]:
        """Say how many of the first images of a class are matched: all of them, here."""
        return [None]

    def still(self, own: Images) -> Sequence[slice]:
        """Say which images of a set are not to move; none, here."""
        return []

    def matched(self, losses: Tensor) -> dict[int, Tensor]:
        """Name the losses of a step, [number of sets], by the IPC that they say something of."""
        return {own.ipc: losses[number] for number, own in enumerate(self.sets)}

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The loss of each set's matching over the steps, `matching/ipc-10`; what a guide noted."""
        noted = {} if self._guide is None else self._guide.curves
        return {**self._trace.curves, **noted}

    def _descend(self, network: nn.Module, step: int) -> Tensor:
        """Take one step with all images; return the loss of each set, [number of sets]."""
        for own in self.sets:
            own.pixels.grad = torch.zeros_like(own.pixels)
        losses = torch.zeros(len(self.sets), device=self.reference.device)
        for label in self._labels:
            losses += self._match(network, label)
        self._trace.note(
            step, {f"matching/ipc-{ipc}": loss for ipc, loss in self.matched(losses).items()}
        )
        if self._guide is not None:
            self._guide.add(network, self.batches, losses)
        if self._terms:
            losses = losses + torch.stack([self._add_terms(own) for own in self.sets])
        for own in self.sets:
            self._hold(own)
        factor = learning_rate_factor(self.options.schedule, step / self.options.iterations)
        set_learning_rate(self._optimizer, self.options.lr * factor)
        self._optimizer.step()
        for own in self.sets:
            self.reference.spec.clamp_(own.pixels)
        return losses

    def _hold(self, own: Images) -> None:
        """Take gradient and momentum from images that are not to move."""
        momentum = self._optimizer.state[own.pixels].get("momentum_buffer")
        for part in self.still(own):
            for tensor in (own.pixels.grad, momentum):
                if tensor is not None:
                    tensor[part] = 0

    def _match(self, network: nn.Module, label: int) -> Tensor:
        """Add the gradient of one class to every set; return the losses, [number of sets]."""
        options, spec = self.options, self.reference.spec
        features = options.feature_weight > 0
        # One draw, and one who answers, for all that is compared.
        changes = augmentation.draw(
            options.augmentation, spec.size, self._changes[label], flip=spec.flip, compose=True
        ).to(self.reference.device)
        answer = self.reference.ask() if self.reference.soft and self.reference.ask else None
        real = augmentation.apply(self.batches.of(label), changes)
        wanted = signature(network, real, _targets(real, label, answer), features=features)
        distance = partial(
            signature_distance,
            wanted=wanted,
            metric=options.metric,
            feature_weight=options.feature_weight,
        )

        def show(views: Tensor) -> tuple[Tensor, Tensor]:
            views = augmentation.apply(views, changes)
            return views, _targets(views, label, answer)

        nothing = torch.zeros((), device=self.reference.device)
        return torch.stack(
            [
                self.match_set(network, own, label, show, distance)
                if own.counts[label]
                else nothing
                for own in self.sets
            ]
        )

    def match_set(
        self, network: nn.Module, own: Images, label: int, show: Show, distance: Distance
    ) -> Tensor:
        """Add the gradient of one class to a set that holds it.

        Args:
            network: of this step.
            own: the set.
            label: of the class.
            show: changes views as the real images are, and tells what they are to be taken for.
            distance: of a signature from that of the real images.

        Returns:
            The loss, a scalar.
        """
        loss = torch.zeros((), device=self.reference.device)
        for first in self.prefixes(own, label):
            leaves = own.leaves(label, first)
            views, targets = show(own.views(leaves))
            slope, part = matching_gradient(
                network,
                views,
                targets,
                distance,
                features=self.options.feature_weight > 0,
                chunk=self.options.chunk,
            )
            (gradient,) = torch.autograd.grad(views, leaves, slope)
            own.add_gradient(
                own.seen(views, leaves) * own.counts[label] * gradient, own.of(label).start
            )
            loss = loss + part
        return loss

    def _add_terms(self, own: Images) -> Tensor:
        """Add the gradient of the extra terms of a set, class by class; return their sum."""
        total = torch.zeros((), device=self.reference.device)
        for label in own.labels:
            leaves = own.leaves(label)
            views = own.views(leaves)
            labels = _targets(views, label, None)
            values = [weight * term(views, labels) for weight, term in self._terms]
            found = torch.stack(values).sum()
            (gradient,) = torch.autograd.grad(found, leaves)
            own.add_gradient(
                own.seen(views, leaves) * own.counts[label] * gradient, own.of(label).start
            )
            total = total + found.detach()
        return total


def _targets(views: Tensor, label: int, answer: Answer | None) -> Tensor:
    """Return what views of a class are said to be: the class, or probabilities."""
    if answer is not None:
        return answer(views.detach())
    return torch.full((len(views),), label, device=views.device)
