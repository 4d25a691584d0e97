"""DM: images whose mean features are those of the real images, for any network.

Zhao and Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023), Algorithm 1. Each
iteration draws a new random network f, for each class c a batch of real images and one
augmentation a that real and synthetic images share, and descends

    L = sum_c || mean f(a(real_c)) - mean f(a(synthetic_c)) ||^2,

with f the features before the classifier of a ConvNet with instance norm. Nothing is trained but
the images; the teachers only label them, and serve terms that ask them.

A term (`regularizers`) sees the images as they are, all classes at once, once an iteration.

Memory does not grow with IPC, classes or `batch_real`: gradients are added up class by class;
real features need no graph; more than `chunk` synthetic images of a class go through the network
in parts whose activations are computed twice. With more than `chunk` images in all, a term sees
runs of whole classes, each weighted by its share of the images: the same sum for terms that are
means over images (CMI, image norm). Only a class larger than `chunk` is cut.

Departures, each for a reason:
- 2000 iterations by default (theirs: 20000), to suit a CPU;
- no rotation among the augmentations (see `augmentation`), and mirrors only where the data set
  allows them;
- pixels stay between black and white at every step: the images end as uint8;
- a class with fewer real images than wanted starts the others from noise: copies would get the
  same gradient at every step, and stay copies.

The images of a class are optimised together, so the first k of them are no DM set for IPC k.

Published, with 20000 iterations, hard labels and 1000 epochs of DSA (IPC 1 / 10 / 50): CIFAR-10
26.0 / 48.9 / 63.0, MNIST 89.7 / 97.5 / 98.6, CIFAR-100 11.4 / 29.7 / 43.6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedistill import augmentation
from fedistill.augmentation import Parameters
from fedistill.config import ModelConfig
from fedistill.distillers.base import Distilled, Distiller, Progress, Task, first_images
from fedistill.images import DataSpec
from fedistill.models import build
from fedistill.models.build import require_network
from fedistill.models.convnet import WIDTH
from fedistill.models.features import penultimate
from fedistill.rules import above_zero, at_least, below_one, check
from fedistill.teacher import freeze
from fedistill.training import autocast


@dataclass(frozen=True, kw_only=True)
class DM(Distiller):
    """Options of DM.

    Attributes:
        iterations: steps of all images, each with a network of its own.
        lr: of SGD, in normalised pixel units; constant.
        momentum: of SGD.
        batch_real: real images of a class in each step; a class with fewer gives all.
        init: `real` starts from random real images, `noise` from N(0, 1) in normalised units.
        augmentation: operations of which each step draws one for each class; `none`.
        width: filters of the random ConvNets.
        depth: blocks of the random ConvNets; None: by image size.
        chunk: most images that are in a network at once.
    """

    iterations: int = 2000
    lr: float = 1.0
    momentum: float = 0.5
    batch_real: int = 256
    init: Literal["real", "noise"] = "real"
    augmentation: str = "color_crop_cutout_flip_scale"
    width: int = WIDTH
    depth: int | None = None
    chunk: int = 256

    def __post_init__(self) -> None:
        check(
            at_least(self, 1, "iterations", "batch_real", "width", "depth", "chunk"),
            above_zero(self, "lr"),
            below_one(self, "momentum"),
            augmentation.accepted(self.augmentation),
        )

    @property
    def optimises_jointly(self) -> bool:
        """It is their mean that is matched."""
        return True

    @property
    def uses_real_images(self) -> bool:
        """Only a start from real images shows any."""
        return self.init == "real"

    @property
    def network(self) -> ModelConfig:
        """The ConvNet whose features are matched."""
        return ModelConfig(depth=self.depth, width=self.width, norm="instance")

    def check(self, model: nn.Module, config: ModelConfig, spec: DataSpec) -> None:
        """Refuse random networks that are too deep for the images; any teacher will do."""
        super().check(model, config, spec)
        require_network(self.network, spec, "distill.depth, the random ConvNets of dm")

    def distill(self, task: Task) -> Distilled:
        """Optimise all images, each step with the gradient of every class."""
        images = first_images(task, self.init).to(task.device).requires_grad_()
        optimizer = torch.optim.SGD([images], lr=self.lr, momentum=self.momentum)
        losses = _Losses(self, task)
        progress = Progress(task, self.iterations)
        for step in range(self.iterations if len(images) else 0):
            images.grad = torch.zeros_like(images)
            progress.step(losses.descend(images, step))
            optimizer.step()
            task.spec.clamp_(images)
        return Distilled(task.spec.to_uint8(images.detach()).cpu(), progress.curve)


class _Losses:
    """The loss of a step, taken apart so that no more than a chunk has a graph at once."""

    def __init__(self, options: DM, task: Task) -> None:
        self._options = options
        self._task = task
        self._terms = task.terms()
        self._real = task.shard.images.to(task.device)
        self._labels = task.labels.to(task.device)
        self._held = [
            (task.shard.labels == label).nonzero()[:, 0] for label in range(len(task.counts))
        ]
        self._choices = task.stream("real batches")
        self._changes = task.stream("augmentation")

    def descend(self, images: Tensor, step: int) -> Tensor:
        """Add the gradient of a step's loss to that of all images; return the loss."""
        options, task = self._options, self._task
        path = ("recover", task.partition_id, task.attempt, "network", step)
        network = freeze(build(options.network, task.spec, task.seed, *path).to(task.device))
        losses = [
            _add_gradient(images, slice(end - count, end), partial(self._distance, network, label))
            for label, (count, end) in enumerate(
                zip(task.counts, accumulate(task.counts), strict=True)
            )
            if count
        ]
        if self._terms:
            losses += [
                _add_gradient(images, run, partial(self._extra, run))
                for run in runs(task.counts, options.chunk)
            ]
        return torch.stack(losses).sum()

    def _distance(self, network: nn.Module, label: int, images: Tensor) -> Tensor:
        """Return the squared distance of a class from a fresh batch of its real images."""
        options, task = self._options, self._task
        held = self._held[label]
        chosen = held[torch.randperm(len(held), generator=self._choices)[: options.batch_real]]
        real = task.spec.normalise(self._real[chosen.to(task.device)])
        changes = augmentation.draw(
            options.augmentation, task.spec.size, self._changes, flip=task.spec.flip
        )
        with torch.no_grad():
            wanted = mean_features(network, real, changes, options.chunk, task.dtype)
        return (wanted - mean_features(network, images, changes, options.chunk)).square().sum()

    def _extra(self, run: slice, images: Tensor) -> Tensor:
        """Return the weighted terms of a run of images, by its share of all."""
        labels = self._labels[run]
        values = [weight * term(images, labels) for weight, term in self._terms]
        return torch.stack(values).sum() * (len(labels) / len(self._labels))


def mean_features(
    network: nn.Module,
    images: Tensor,
    changes: Parameters,
    chunk: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the mean features of augmented images, float32 [D]; differentiable.

    Args:
        network: frozen.
        images: normalised, [B, C, H, W].
        changes: one draw for all images.
        chunk: most images that keep activations at once; more are computed a second time when
            the gradient is taken.
        dtype: of the convolutions.
    """

    def total(part: Tensor) -> Tensor:
        shown = augmentation.apply(part, changes)
        with autocast(images.device, dtype):
            features = penultimate(network, shown)
        return features.float().sum(0)

    parts = images.split(chunk)
    if len(parts) == 1 or not torch.is_grad_enabled():
        totals = [total(part) for part in parts]
    else:
        totals = [
            checkpoint(total, part, use_reentrant=False, preserve_rng_state=False) for part in parts
        ]
    return torch.stack(totals).sum(0) / len(images)


def runs(counts: Sequence[int], size: int) -> list[slice]:
    """Cut images in class order into runs of whole classes, of at most `size` images.

    A class that is larger than that by itself is cut into pieces.
    """
    found = []
    start = end = 0
    for count in counts:
        if end > start and end + count - start > size:
            found.append(slice(start, end))
            start = end
        end += count
        while end - start > size:
            found.append(slice(start, start + size))
            start += size
    return [*found, slice(start, end)] if end > start else found


def _add_gradient(images: Tensor, part: slice, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Add the gradient of a loss of some images to `images.grad`; return the loss."""
    own = images.detach()[part].requires_grad_()
    loss = loss_of(own)
    assert images.grad is not None
    images.grad[part] += torch.autograd.grad(loss, own)[0]
    return loss.detach()
