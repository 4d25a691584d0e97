"""Optimise pixels against frozen teachers: the loop that SRe2L, G-VBSM and EDC share.

Batches of images start from noise or from real images. In every iteration each image is cropped,
shifted and mirrored by itself, an objective says how wrong a teacher finds it, Adam moves the
pixels, and what leaves the range of pixels is clipped. A method is its options and its objective.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Literal

import torch
from torch import Tensor

from fedistill import crops
from fedistill.crops import ViewOptions
from fedistill.distillers.base import Batch, Distilled, Distiller, Progress, Task, real_images
from fedistill.images import DataSpec
from fedistill.rules import Rule, above_zero, at_least, check, part
from fedistill.training import forward_batch, learning_rate_factor, set_learning_rate

Order = Literal["across", "class"]
Init = Literal["noise", "real"]
Show = Callable[[Tensor], Tensor]


class Objective(ABC):
    """What the pixels of one client are optimised for, batch after batch."""

    @abstractmethod
    def start(self, labels: Tensor, number: int) -> None:
        """Turn to the next batch.

        Args:
            labels: its classes, int64 [B].
            number: which batch, from 0.
        """

    @abstractmethod
    def loss(self, images: Tensor, show: Show) -> Tensor:
        """Return the loss of one iteration, a scalar.

        Args:
            images: normalised, [B, C, H, W]; the gradient is taken for them.
            show: crops, shifts and mirrors images [B, C, H, W] as this iteration does.
        """


@dataclass(frozen=True, kw_only=True)
class Inversion(Distiller):
    """Options that every method of this kind has.

    Attributes:
        iterations: optimiser steps for each image.
        lr: of Adam (betas 0.5, 0.9), in normalised pixel units; cosine to 0.
        batch_size: images optimised together; their joint statistics are matched.
        order: `across` puts one image of every class in a batch before the second of any;
            `class` fills batches class by class (G-VBSM, EDC).
        init: `noise` is N(0, 1) in normalised units; `real` starts from random real images.
        crop: least area of the random crop that the teacher sees.
        shift: most pixels of the random shift that the teacher sees.
    """

    iterations: int = 1000
    lr: float = 0.1
    batch_size: int = 100
    order: Order = "across"
    init: Init = "noise"
    crop: float = 0.6
    shift: int = 0

    def __post_init__(self) -> None:
        check(*self.rules())

    def rules(self) -> list[Rule]:
        """List what must hold of the options; a method adds its own."""
        return [
            at_least(self, 1, "iterations", "batch_size"),
            at_least(self, 0, "shift"),
            above_zero(self, "lr"),
            part(self, "crop"),
        ]

    def views(self, spec: DataSpec) -> ViewOptions:
        """Return what images of a data set are shown as."""
        return ViewOptions(scale=(self.crop, 1.0), shift=self.shift, flip=spec.flip)

    @property
    def uses_real_images(self) -> bool:
        """Only a start from real images shows any."""
        return self.init == "real"

    @property
    def batches_stand_alone(self) -> bool:
        """Whether nothing of one batch is carried into the next.

        A batch that was made for a smaller set, or before a run was cut short, is then taken as
        it is.
        """
        return False

    @abstractmethod
    def objective(self, task: Task) -> Objective:
        """Make the objective of one client; measures its real data where that is needed."""

    def distill(self, task: Task) -> Distilled:
        """Optimise all images, batch by batch."""
        labels, spec = task.labels, task.spec
        images = torch.empty((len(labels), spec.channels, spec.size, spec.size), dtype=torch.uint8)
        batches = self._batches(task.counts)
        real = real_images(task) if self.init == "real" else None
        run = _Run(
            self,
            task,
            self.objective(task),
            Progress(task, len(batches) * self.iterations, self.iterations),
        )
        for number, index in enumerate(batches):
            start = None if real is None else spec.normalise(real[index])
            make = partial(run.batch, labels[index], number, start)
            if self.batches_stand_alone and not task.regularizers:
                key: dict[str, Any] = {"batch": number, "labels": labels[index].tolist()}
                if real is not None:  # which images these are depends on the counts of all classes
                    key["start"] = sha256(real[index].cpu().numpy().data).hexdigest()
                images[index] = run.recalled(key, make)
            else:
                images[index] = make().images
        return Distilled(images, run.progress.curve)

    def _batches(self, counts: Sequence[int]) -> list[Tensor]:
        """Split the images, given by their index in class order, into batches."""
        sizes = torch.tensor(counts)
        order = torch.arange(int(sizes.sum()))
        if self.order == "across":
            first = sizes.cumsum(0) - sizes
            rank = order - first.repeat_interleave(sizes)
            order = torch.argsort(rank, stable=True)
        return list(order.split(self.batch_size)) if len(order) else []


class _Run:
    """The loop, and what stays from batch to batch."""

    def __init__(
        self, options: Inversion, task: Task, objective: Objective, progress: Progress
    ) -> None:
        self.progress = progress
        self._options = options
        self._task = task
        self._objective = objective
        self._terms = task.terms()
        self._views = options.views(task.spec)
        self._outside = task.spec.outside(task.device) if options.shift else None

    def recalled(self, key: Mapping[str, Any], make: Callable[[], Batch]) -> Tensor:
        """Return the images of a batch that was made before, or make it."""
        before = self.progress.done
        found = self._task.recall(key, make)
        if self.progress.done == before:
            self.progress.skip(self._options.iterations, found.curve)
        return found.images

    def batch(self, labels: Tensor, number: int, start: Tensor | None) -> Batch:
        """Optimise one batch from noise or from a start [B, C, H, W]."""
        options, spec, device = self._options, self._task.spec, self._task.device
        stream = self._task.stream("batch", number)
        noise = torch.randn((len(labels), spec.channels, spec.size, spec.size), generator=stream)
        images = (noise if start is None else start).to(device).requires_grad_()
        labels = labels.to(device)
        optimizer = torch.optim.Adam([images], lr=options.lr, betas=(0.5, 0.9))
        self._objective.start(labels, number)
        for step in range(options.iterations):
            factor = learning_rate_factor("cosine", step / options.iterations)
            set_learning_rate(optimizer, options.lr * factor)
            loss = self._objective.loss(images, self._camera(len(labels), stream))
            for weight, term in self._terms:
                loss = loss + weight * term(images, labels)
            # The weights are frozen: this is one backward pass to the pixels and no more.
            (images.grad,) = torch.autograd.grad(loss, images)
            optimizer.step()
            spec.clamp_(images)
            self.progress.step(loss)
        curve = self.progress.curve if number == 0 else []
        return Batch(spec.to_uint8(images.detach()).cpu(), curve)

    def _camera(self, count: int, stream: torch.Generator) -> Show:
        """Draw the views of one iteration; return what shows images under them."""
        views = crops.draw(count, self._task.spec.size, self._views, stream)
        return lambda images: crops.apply(images, views, self._outside).contiguous(
            memory_format=torch.channels_last
        )


def shard_batches(
    task: Task, options: ViewOptions | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through the real images of a client once, in chunks.

    Args:
        task: of the client.
        options: what the images are shown as, each once; None: whole.

    Yields:
        Normalised images [B, C, H, W] and their labels [B], on the device.
    """
    stream = task.stream("real views")
    outside = task.spec.outside(task.device) if options and options.shift else None
    for index in torch.arange(len(task.shard)).split(forward_batch(task.device)):
        images = task.spec.normalise(task.shard.images[index].to(task.device))
        if options is not None:
            views = crops.draw(len(index), task.spec.size, options, stream)
            images = crops.apply(images, views, outside)
        yield images, task.shard.labels[index].to(task.device)
