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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import augmentation, crops, mosaic
from fedistill.augmentation import Parameters
from fedistill.clusters import representatives
from fedistill.config import ModelConfig
from fedistill.crops import ViewOptions
from fedistill.images import DataSpec, ImageSet
from fedistill.losses.base import Regularizer
from fedistill.losses.matching import Metric, matching_gradient, signature, signature_distance
from fedistill.models import build
from fedistill.models.convnet import WIDTH
from fedistill.models.features import features_of
from fedistill.rules import above_zero, at_least, below_one, check, share
from fedistill.seeding import derive_seed, generator

Choice = Literal["clusters", "random"]

# Of the authors' code: of the networks that gradients are taken of.
_NETWORK_MOMENTUM, _NETWORK_WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True, kw_only=True)
class MatchingOptions:
    """Options of the loop.

    Attributes:
        iterations: steps of all images.
        restart: steps after which a fresh network takes over.
        lr: of SGD for one image, in normalised pixel units; constant.
        momentum: of SGD.
        metric: how gradients are compared, see `losses/matching.py`.
        feature_weight: of the distance of mean features (DREAM+); 0: gradients alone.
        tiles: small images a side of each image.
        batch_real: real images of a class in each step; a class with fewer gives all.
        batch_synthetic: most views of a class of one set in each step.
        choice: `clusters` takes the real images nearest the centres of as many clusters of their
            features (DREAM), `random` takes random ones (IDC).
        interval: steps after which clusters are found again.
        candidates: random images of a class among which clusters are found; None: all of them.
        augmentation: operations that each step composes, one draw for a class.
        width: filters of the networks.
        depth: blocks of the networks; None: by image size.
        network_lr: of SGD (momentum 0.9), for the networks.
        network_images: real images that a network is trained on after each step.
        network_batch_size: in batches of this size.
        network_mix: probability of CutMix for such a batch.
        chunk: most views that have a graph at once.
    """

    iterations: int = 1000
    restart: int = 100
    lr: float = 0.01
    momentum: float = 0.5
    metric: Metric = "mse"
    feature_weight: float = 0.0
    tiles: int = 2
    batch_real: int = 128
    batch_synthetic: int = 128
    choice: Choice = "clusters"
    interval: int = 10
    candidates: int | None = None
    augmentation: str = "color_crop_cutout"
    width: int = WIDTH
    depth: int | None = None
    network_lr: float = 0.01
    network_images: int = 500
    network_batch_size: int = 64
    network_mix: float = 0.5
    chunk: int = 128

    def __post_init__(self) -> None:
        check(
            at_least(
                self, 1,
                "iterations", "restart", "tiles", "batch_real", "batch_synthetic", "interval",
                "candidates", "width", "depth", "network_batch_size", "chunk",
            ),
            at_least(self, 0, "feature_weight", "network_images"),
            above_zero(self, "lr", "network_lr"),
            below_one(self, "momentum"),
            share(self, "network_mix"),
            augmentation.accepted(self.augmentation),
        )  # fmt: skip

    @property
    def network(self) -> ModelConfig:
        """The ConvNet whose gradients are matched; nothing in it depends on a batch."""
        return ModelConfig(depth=self.depth, width=self.width, norm="instance")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What sets are matched to, and where that is done.

    Attributes:
        images: with hard labels; every class that a set holds.
        spec: of the data set.
        seed: of the experiment.
        path: stage and ids; enters every seed.
        device: where to work.
        answer: probabilities [B, num_classes] for normalised views [B, C, H, W], which the
            networks are trained on; None: the hard labels.
        soft: whether these are what gradients are taken of too, on both sides.
    """

    images: ImageSet
    spec: DataSpec
    seed: int
    path: tuple[str | int, ...]
    device: torch.device
    answer: Callable[[Tensor], Tensor] | None = None
    soft: bool = False

    def stream(self, *name: str | int) -> torch.Generator:
        """Return a generator for one purpose."""
        return generator(self.seed, *self.path, *name)


class Guide(Protocol):
    """What moves images beside the matching: information between sets, say."""

    def restart(self) -> None:
        """Learn that a fresh network has taken over."""

    def add(self, network: nn.Module, sets: "Sequence[Images]", batches: "RealBatches",
            loss: Tensor) -> None:  # fmt: skip
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


class RealBatches:
    """The real images of each class that the next steps match.

    Args:
        options: of the loop.
        reference: holds them.
        name: enters the seeds.
    """

    def __init__(
        self, options: MatchingOptions, reference: Reference, name: str = "real batches"
    ) -> None:
        self._options = options
        self._reference = reference
        self._pixels = reference.images.images.to(reference.device)
        labels = reference.images.labels
        self._held = [
            (labels == label).nonzero()[:, 0] for label in range(reference.spec.num_classes)
        ]
        self._name = name
        self._stream = reference.stream(name)
        self._chosen: dict[int, Tensor] = {}
        self._rounds = 0

    def choose(self, network: nn.Module, labels: Sequence[int]) -> None:
        """Choose anew for some classes, by the features that a network has of them now."""
        if self._options.choice == "random":
            return
        self._rounds += 1
        for label in labels:
            self._chosen[label] = self.clustered(network, label, self._options.batch_real)

    def clustered(self, network: nn.Module, label: int, count: int) -> Tensor:
        """Return up to `count` images of a class that stand for it: indices, int64 [B]."""
        among = self.shuffled(label)[: self._options.candidates]
        reference = self._reference
        images = reference.images.images[among]
        features = features_of(network, images, reference.spec, torch.float32)
        path = (*reference.path, self._name, "clusters", self._rounds, label)
        return among[representatives(features, count, derive_seed(reference.seed, *path))]

    def shuffled(self, label: int) -> Tensor:
        """Return all images of a class in random order: indices into the reference, int64 [n]."""
        held = self._held[label]
        return held[torch.randperm(len(held), generator=self._stream)]

    def of(self, label: int) -> Tensor:
        """Return the chosen images of a class, normalised, [B, C, H, W].

        Random ones are drawn anew each time.
        """
        if self._options.choice == "random":
            chosen = self.shuffled(label)[: self._options.batch_real]
        else:
            chosen = self._chosen[label]
        return self._reference.spec.normalise(self._pixels[chosen.to(self._pixels.device)])


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
                network = _Network(self.options, self.reference, step // self.options.restart)
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


class _Network:
    """A network on its way through training: what it is now decides which gradients match."""

    def __init__(self, options: MatchingOptions, reference: Reference, number: int) -> None:
        self._options = options
        self._reference = reference
        self.module = build(
            options.network, reference.spec, reference.seed, *reference.path, "network", number
        ).to(reference.device)
        self._optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=options.network_lr,
            momentum=_NETWORK_MOMENTUM,
            weight_decay=_NETWORK_WEIGHT_DECAY,
        )
        self._stream = reference.stream("network", number, "batches")

    def learn(self) -> None:
        """Train it on some real images."""
        self.module.train()
        for index in self._batches():
            views, targets = self._seen(index)
            loss = F.cross_entropy(
                self.module(views.contiguous(memory_format=torch.channels_last)), targets
            )
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _batches(self) -> Iterator[Tensor]:
        count = min(self._options.network_images, len(self._reference.images))
        if count:
            order = torch.randperm(len(self._reference.images), generator=self._stream)[:count]
            yield from order.split(self._options.network_batch_size)

    def _seen(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of real images, and what they are."""
        reference, spec = self._reference, self._reference.spec
        mixed = self._options.network_mix
        options = ViewOptions(
            shift=max(1, spec.size // 8),
            flip=spec.flip,
            mix="cutmix" if mixed else "none",
            mix_probability=mixed,
        )
        drawn = crops.draw(len(index), spec.size, options, self._stream)
        images = spec.normalise(reference.images.images[index].to(reference.device))
        everyone = torch.arange(len(index), device=reference.device)
        views = crops.render(images, drawn, everyone, spec.outside(reference.device))
        if reference.answer is not None:
            return views, reference.answer(views)
        targets = F.one_hot(reference.images.labels[index], spec.num_classes).float()
        if drawn.partner is not None:
            targets = drawn.own_share * targets + (1 - drawn.own_share) * targets[drawn.partner]
        return views, targets.to(reference.device)


def _labels_like(images: Tensor, label: int) -> Tensor:
    return torch.full((len(images),), label, device=images.device)
