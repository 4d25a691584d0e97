"""SRe2L: recover images from a teacher's logits and BatchNorm statistics.

Yin, Xing and Shen, "Squeeze, Recover and Relabel" (NeurIPS 2023), Eq. 5 and 6:

    L = CE(teacher(view(x)), y) + bn_weight * BatchNormAlignment + regularisers.

Departures from the authors' code, each for a reason:
- each image of a batch has its own crop and mirror (theirs: one box for the whole batch), so
  that no two images are tied to the same frame;
- images are kept as the last iterate rounded to uint8 (theirs: truncated JPEG);
- the teacher is in eval mode throughout;
- defaults are for small images with a ConvNet, chosen on held-out training images of MNIST
  (experiments/LOG.md). The paper's: lr 0.25, bn_weight 0.01, no crops, 1000 iterations and
  batches of 10 for ResNet-18 on CIFAR-10; 4000 iterations and crops from 0.08 on ImageNet.

Published accuracy (ResNet-18, CIFAR-10, IPC 10 / 50): 27.2 / 47.5 (re-run by G-VBSM).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import crops
from fedistill.crops import ViewOptions
from fedistill.distillers.base import Distilled, Distiller, Task, real_images
from fedistill.losses.statistics import (
    BatchNormAlignment,
    ClassStatistics,
    class_statistics,
)
from fedistill.models.build import batch_norms
from fedistill.training import autocast, learning_rate_factor, set_learning_rate

_CURVE_POINTS = 50
_STATISTICS_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class SRe2L(Distiller):
    """Options of SRe2L.

    Attributes:
        iterations: optimiser steps for each image.
        lr: of Adam (betas 0.5, 0.9), in normalised pixel units; cosine to 0.
        bn_weight: of the BatchNorm term (`r_bn`).
        first_bn_weight: extra factor of the first layer (`first_bn_multiplier`).
        class_bn_weight: of the same term class by class, against the statistics of the shard's
            images of that class (LPLD, EDC); 0 is SRe2L as published.
        batch_size: images optimised together; their joint statistics are matched.
        order: `across` puts one image of every class in a batch before the second of any;
            `class` fills batches class by class (G-VBSM, EDC).
        init: `noise` is N(0, 1) in normalised units; `real` starts from random real images.
        crop: least area of the random crop that the teacher sees.
        shift: most pixels of the random shift that the teacher sees.
    """

    iterations: int = 1000
    lr: float = 0.1
    bn_weight: float = 1.0
    first_bn_weight: float = 10.0
    class_bn_weight: float = 0.0
    batch_size: int = 100
    order: Literal["across", "class"] = "across"
    init: Literal["noise", "real"] = "noise"
    crop: float = 0.6
    shift: int = 0

    def __post_init__(self) -> None:
        broken = [
            message
            for holds, message in (
                (self.iterations >= 1, f"iterations is {self.iterations}; accepted: 1 or more"),
                (self.lr > 0, f"lr is {self.lr}; accepted: above 0"),
                (self.batch_size >= 1, f"batch_size is {self.batch_size}; accepted: 1 or more"),
                (0 < self.crop <= 1, f"crop is {self.crop}; accepted: above 0, up to 1"),
                (self.shift >= 0, f"shift is {self.shift}; accepted: 0 or more"),
            )
            if not holds
        ]
        if broken:
            raise ValueError("; ".join(broken))

    @property
    def uses_real_images(self) -> bool:
        """Only a start from real images shows any."""
        return self.init == "real"

    @property
    def needs_batch_norm(self) -> bool:
        """The statistics of BatchNorm layers are what is matched."""
        return True

    def distill(self, task: Task) -> Distilled:
        """Recover all images, batch by batch."""
        labels = task.labels
        images = torch.empty(
            (len(labels), task.spec.channels, task.spec.size, task.spec.size), dtype=torch.uint8
        )
        batches = self._batches(task.counts)
        curve: list[tuple[int, float]] = []
        real = real_images(task) if self.init == "real" else None
        statistics = [self._class_statistics(task, teacher) for teacher in task.teachers]
        for number, index in enumerate(batches):
            start = task.spec.normalise(real[index]) if real is not None else None
            recover = _Recover(self, task, labels[index], statistics, number, len(batches))
            images[index], losses = recover.run(start)
            curve = curve or losses
        return Distilled(images, curve)

    def _batches(self, counts: Sequence[int]) -> list[Tensor]:
        """Split the images, given by their index in class order, into batches."""
        sizes = torch.tensor(counts)
        order = torch.arange(int(sizes.sum()))
        if self.order == "across":
            first = sizes.cumsum(0) - sizes
            rank = order - first.repeat_interleave(sizes)
            order = torch.argsort(rank, stable=True)
        return list(order.split(self.batch_size)) if len(order) else []

    def _class_statistics(self, task: Task, teacher: nn.Module) -> list[ClassStatistics]:
        if not self.class_bn_weight:
            return []
        batches = (
            (
                task.spec.normalise(task.shard.images[index].to(task.device)),
                task.shard.labels[index].to(task.device),
            )
            for index in torch.arange(len(task.shard)).split(_STATISTICS_BATCH)
        )
        # Means over many images: the rounding of single activations averages out.
        with autocast(task.device, task.dtype):
            return class_statistics(teacher, batch_norms(teacher), batches, task.spec.num_classes)


@dataclass(frozen=True)
class _Recover:
    """The optimisation of one batch of images."""

    options: SRe2L
    task: Task
    labels: Tensor
    statistics: Sequence[Sequence[ClassStatistics]]
    number: int
    batches: int

    def run(self, start: Tensor | None) -> tuple[Tensor, list[tuple[int, float]]]:
        """Optimise from noise or from a start [B, C, H, W]; return uint8 images and losses."""
        options, task, spec = self.options, self.task, self.task.spec
        stream = task.stream("batch", self.number)
        shape = (len(self.labels), spec.channels, spec.size, spec.size)
        noise = torch.randn(shape, generator=stream)
        low, high = spec.pixel_bounds(task.device)
        images = (noise if start is None else start).to(task.device).requires_grad_()
        labels = self.labels.to(task.device)
        views = ViewOptions(scale=(options.crop, 1.0), shift=options.shift, flip=spec.flip)
        optimizer = torch.optim.Adam([images], lr=options.lr, betas=(0.5, 0.9))
        which = self.number % len(task.teachers)
        teacher = task.teachers[which]
        terms = task.terms()
        curve: list[tuple[int, float]] = []
        with BatchNormAlignment(
            batch_norms(teacher),
            labels,
            weight=options.bn_weight,
            first_weight=options.first_bn_weight,
            class_weight=options.class_bn_weight,
            real=self.statistics[which],
        ) as alignment:
            for step in range(options.iterations):
                factor = learning_rate_factor("cosine", step / options.iterations)
                set_learning_rate(optimizer, options.lr * factor)
                boxes = crops.draw(len(labels), spec.size, views, stream)
                shown = crops.apply(images, boxes, low if options.shift else None)
                logits = teacher(shown.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, labels) + alignment.take()
                for weight, term in terms:
                    loss = loss + weight * term(images, labels)
                # The weights are frozen: this is one backward pass to the pixels and no more.
                (images.grad,) = torch.autograd.grad(loss, images)
                optimizer.step()
                with torch.no_grad():
                    images.clamp_(low, high)
                self._tell(step, loss, curve)
        return spec.to_uint8(images.detach()).cpu(), curve

    def _tell(self, step: int, loss: Tensor, curve: list[tuple[int, float]]) -> None:
        iterations = self.options.iterations
        if step % max(1, iterations // _CURVE_POINTS) and step + 1 < iterations:
            return  # reading the loss makes a GPU wait
        curve.append((step, loss.item()))
        done = self.number * iterations + step + 1
        self.task.report(done, self.batches * iterations, curve[-1][1])
