"""Gradient matching: the loop that DREAM, MIBDC, MDC and the server's co-training share.

Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC, ICML 2022),
Algorithm 1, as DREAM (Liu et al., ICCV 2023) uses it. A fresh random network is trained on real
images; before each of its steps, for every class,

    real images and views of synthetic ones are augmented by the same draw,
    the images descend  D(g_synthetic, g_real) + feature_weight * || f_synthetic - f_real ||^2,

with g the gradient of the network's loss and f its mean features (`losses/matching.py`). An image
is a mosaic of tiles x tiles small ones; each, enlarged to the frame, is a view (IDC's
multi-formation).

Several sets may descend side by side: they share networks, real images and their signatures.

Memory does not grow with IPC: at most `batch_synthetic` random views of a class are matched in a
step, at most `chunk` of them have a graph at once, and only one class of one set at a time. All of
it is float32: a gradient of gradients needs its digits.

Departures from both codes:
- all classes descend in one step after a round of all of them. Theirs steps after each class with
  one optimiser over all images, whose momentum of 0.5 has faded by the time that the class is up
  again: an image moves as far;
- the learning rate is that of one image: the gradient of a class is multiplied by its number of
  images, which is what "lr x IPC / 10" does in theirs;
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
from fedistill.augmentation import Parameters
from fedistill.losses.base import Regularizer
from fedistill.losses.matching import matching_gradient, signature, signature_distance
from fedistill.matching_options import MatchingOptions
from fedistill.reference import Learner, RealBatches, Reference


class Guide(Protocol):
    """What moves images beside the matching: information between sets, say."""

    def restart(self) -> None:
        """Learn that a fresh network has taken over."""

    def add(
        self, network: nn.Module, sets: "Sequence[Images]", batches: RealBatches, loss: Tensor
    ) -> None:
        """Add to the gradient of the images of each set.

        Args:
            network: of this step.
            sets: with the gradient of the matching.
            batches: the real images of this step.
            loss: of the matching, over all sets and classes.
        """


class Images:
    """One set that is being optimised, class by class.

    Args:
        start: normalised images, float32 [M, C, H, W].
        counts: images of each class, [num_classes].
        options: of the loop.
        device: where they live.
    """

    def __init__(
        self, start: Tensor, counts: Sequence[int], options: MatchingOptions, device: torch.device
    ) -> None:
        assert len(start) == sum(counts), (len(start), counts)
        self.pixels = start.detach().to(device).clone().requires_grad_()
        self.counts = list(counts)
        self._ends = list(accumulate(counts))
        self._options = options

    @property
    def labels(self) -> list[int]:
        """Classes of which there are images."""
        return [label for label, count in enumerate(self.counts) if count]

    def of(self, label: int) -> slice:
        """Return where the images of a class are."""
        return slice(self._ends[label] - self.counts[label], self._ends[label])

    def leaves(self, label: int, first: int | None = None) -> Tensor:
        """Return a copy of the images of a class to take gradients of, [B, C, H, W].

        Args:
            label: of the class.
            first: how many, from the first; None: all.
        """
        return self.pixels.detach()[self.of(label)][:first].requires_grad_()

    def views(self, leaves: Tensor, stream: torch.Generator) -> Tensor:
        """Return views of images, at most `batch_synthetic` random ones, [B, C, H, W]."""
        options = self._options
        count = len(leaves) * options.tiles**2
        if count <= options.batch_synthetic:
            return mosaic.expand(leaves, options.tiles)
        chosen = torch.randperm(count, generator=stream)[: options.batch_synthetic]
        return mosaic.expand_some(leaves, options.tiles, chosen)

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
        terms: extra ones with their weights; they see the views of one class as they are.
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
        self._changes = reference.stream("augmentation")
        self._choices = reference.stream("views")
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
            told(self._descend(network.module))
            network.learn()

    def prepare(self, network: nn.Module, step: int) -> None:
        """Do what a method does before a step; nothing here."""

    def prefixes(self, own: Images) -> Sequence[int | None]:
        """Say how many of the first images of each class are matched: all of them, here."""
        return [None]

    def settle(self, own: Images) -> None:
        """Put images back that were not to move; none, here."""

    def _descend(self, network: nn.Module) -> Tensor:
        """Take one step with all images; return the loss of each set, [number of sets]."""
        for own in self.sets:
            own.pixels.grad = torch.zeros_like(own.pixels)
        losses = torch.zeros(len(self.sets), device=self.reference.device)
        for label in self._labels:
            losses += self._match(network, label)
        if self._guide is not None:
            self._guide.add(network, self.sets, self.batches, losses.sum())
        self._optimizer.step()
        for own in self.sets:
            self.reference.spec.clamp_(own.pixels)
            self.settle(own)
        return losses

    def _match(self, network: nn.Module, label: int) -> Tensor:
        """Add the gradient of one class to every set; return the losses, [number of sets]."""
        options, spec = self.options, self.reference.spec
        features = options.feature_weight > 0
        changes = augmentation.draw(
            options.augmentation, spec.size, self._changes, flip=spec.flip, compose=True
        )
        real = augmentation.apply(self.batches.of(label), changes)
        wanted = signature(network, real, self._targets(real, label), features=features)
        distance = partial(
            signature_distance,
            wanted=wanted,
            metric=options.metric,
            feature_weight=options.feature_weight,
        )
        losses = []
        for own in self.sets:
            loss = torch.zeros((), device=self.reference.device)
            for first in self.prefixes(own) if own.counts[label] else ():
                loss = loss + self._add(network, own, label, first, changes, distance)
            if own.counts[label] and self._terms:
                loss = loss + self._add_terms(own, label)
            losses.append(loss)
        return torch.stack(losses)

    def _add(
        self,
        network: nn.Module,
        own: Images,
        label: int,
        first: int | None,
        changes: Parameters,
        distance: Callable[[Sequence[Tensor]], Tensor],
    ) -> Tensor:
        """Add the gradient of some images of a class of a set; return the loss."""
        leaves = own.leaves(label, first)
        views = augmentation.apply(own.views(leaves, self._choices), changes)
        slope, loss = matching_gradient(
            network,
            views,
            self._targets(views, label),
            distance,
            features=self.options.feature_weight > 0,
            chunk=self.options.chunk,
        )
        (gradient,) = torch.autograd.grad(views, leaves, slope)
        own.add_gradient(len(leaves) * gradient, own.of(label).start)
        return loss

    def _targets(self, views: Tensor, label: int) -> Tensor:
        """Return what views of a class are said to be: the class, or probabilities."""
        if self.reference.soft and self.reference.answer is not None:
            return self.reference.answer(views.detach())
        return _labels_like(views, label)

    def _add_terms(self, own: Images, label: int) -> Tensor:
        """Add the gradient of the extra terms of a class of a set; return their sum."""
        leaves = own.leaves(label)
        views = own.views(leaves, self._choices)
        labels = _labels_like(views, label)
        values = [weight * term(views, labels) for weight, term in self._terms]
        total = torch.stack(values).sum()
        (gradient,) = torch.autograd.grad(total, leaves)
        own.add_gradient(len(leaves) * gradient, own.of(label).start)
        return total.detach()


def _labels_like(images: Tensor, label: int) -> Tensor:
    return torch.full((len(images),), label, device=images.device)
