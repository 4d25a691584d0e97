"""LIC: tile several real images into one, and learn what makes each look whole to the teacher.

"Information Compensation" (LINs-lab; no public code). Three steps:

1. select: of a random pool of each class, the images that the teacher is surest about
   (s_i = -CE(teacher(x_i), y_i), on whole images);
2. compensate: x* is the mosaic of the shrunken images, and an addition D starting at 0 minimises,
   over augmentations g shared by an image and its tile (Eq. 8),

       || h(g(x_i)) - h(g(expand(x* + D)_i)) ||^2,   h a deep layer of the teacher;

3. relabel: views of single tiles and of the mosaic (`relabel.tiles`), each labelled by a teacher.

Choices where the paper is silent or contradicts itself:
- D descends the loss (its Algorithm 1 adds the gradient), with Adam (betas 0.5, 0.9), cosine to 0,
  and x* + D stays inside the pixel box;
- the norm is a mean over the layer's outputs, so that one learning rate serves every layer;
- g is a random crop, and a mirror where the data set allows it, drawn for each image and step
  (the paper: DSA);
- ranks are strided over the mosaics as in RDED, so that no mosaic holds only the best;
- the pool grows where it would hold fewer than twice the images needed; a client that is asked
  again leaves out the images that it has used;
- several teachers take turns, step by step.

Cost of an image: `iterations` x tiles^2 forward passes of originals and as many forward and
backward passes of tiles (800 + 800 with the defaults), and one forward pass for each image of the
pool. Published: 200 iterations, 4 tiles, 300 images in the pool, all data sets.
Published accuracy (CIFAR-10, IPC 1 / 10 / 50): ConvNet 51.7 / 72.2 / 78.3, ResNet-18
40.7 / 80.9 / 89.2; CIFAR-100 ConvNet 42.7 / 54.8 / 56.6.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import crops, mosaic
from fedistill.config import ModelConfig
from fedistill.crops import ViewOptions
from fedistill.distillers.base import Distilled, Distiller, Progress, Task
from fedistill.images import DataSpec
from fedistill.models import layers
from fedistill.rules import above_zero, at_least, check, part
from fedistill.training import learning_rate_factor, logits_of, set_learning_rate


@dataclass(frozen=True, kw_only=True)
class LIC(Distiller):
    """Options of LIC.

    Attributes:
        iterations: optimiser steps for each mosaic; 0 leaves the plain mosaic.
        lr: of Adam, in normalised pixel units; cosine to 0.
        tiles: a mosaic is tiles x tiles images.
        pool: real images of each class that the teacher chooses from.
        layer: whose output is aligned: a module's name, `last` for the last feature map
            before the classifier, `logits` for the output (the letter of Eq. 8).
        crop: least area of the random crop that both are seen through.
        batch_size: mosaics optimised together; they do not influence each other.
    """

    iterations: int = 200
    lr: float = 0.02
    tiles: int = 2
    pool: int = 300
    layer: str = layers.LAST
    crop: float = 0.5
    batch_size: int = 25

    def __post_init__(self) -> None:
        check(
            at_least(self, 0, "iterations"),
            at_least(self, 1, "tiles", "pool", "batch_size"),
            above_zero(self, "lr"),
            part(self, "crop"),
        )

    @property
    def uses_real_images(self) -> bool:
        """A mosaic is made of them."""
        return True

    @property
    def real_images_per_image(self) -> int:
        """One for each tile."""
        return self.tiles**2

    @property
    def mosaic_tiles(self) -> int:
        """Views of single tiles are what students need."""
        return self.tiles

    def check(self, model: nn.Module, config: ModelConfig, spec: DataSpec) -> None:
        """Refuse a layer that the network lacks, and mosaics that the data do not allow."""
        super().check(model, config, spec)
        mosaic.require_tiles(self.tiles, spec.size, "distill.tiles")
        mosaic.require_unwhitened(self.tiles, spec, "distill.tiles")
        layers.resolve(model, self.layer, spec.channels, spec.size)

    def distill(self, task: Task) -> Distilled:
        """Choose, tile and compensate, some mosaics at a time."""
        parts = [_choose(self, task, label, count) for label, count in enumerate(task.counts)]
        chosen = torch.cat(parts)  # tiles^2 real images for each mosaic, mosaic by mosaic
        batches = list(torch.arange(sum(task.counts)).split(self.batch_size))
        progress = Progress(task, self.iterations * len(batches), self.iterations)
        run = _Compensation(self, task, progress)
        images = [
            run.batch(chosen.view(-1, self.tiles**2)[batch], task.labels[batch], number)
            for number, batch in enumerate(batches)
            if len(batch)
        ]
        spec = task.spec
        empty = torch.empty((0, spec.channels, spec.size, spec.size), dtype=torch.uint8)
        return Distilled(torch.cat([empty, *images]), progress.curve)


def _choose(options: LIC, task: Task, label: int, count: int) -> Tensor:
    """Return indices into the shard of images of a class that no earlier request has used."""
    mine = (task.shard.labels == label).nonzero()[:, 0]
    for earlier in task.earlier():
        used = _surest(options, earlier, label, earlier.counts[label], mine)
        mine = mine[~torch.isin(mine, used)]
    return _surest(options, task, label, count, mine)


def _surest(options: LIC, task: Task, label: int, count: int, mine: Tensor) -> Tensor:
    """Return those of some images of a class that the teachers are surest about."""
    wanted = count * options.real_images_per_image
    assert wanted <= len(mine), f"asked for {wanted} images of class {label}, has {len(mine)}"
    if not count:
        return mine[:0]
    drawn = torch.randperm(len(mine), generator=task.stream("pool", label))
    pool = mine[drawn[: max(options.pool, 2 * wanted)]]
    labels = torch.full((len(pool),), label)
    losses = [
        F.cross_entropy(
            logits_of(teacher, task.shard.images[pool], task.spec, task.dtype).cpu(),
            labels,
            reduction="none",
        )
        for teacher in task.teachers
    ]
    best = torch.stack(losses).mean(0).argsort(stable=True)[:wanted]
    return mosaic.strided(pool[best], count)


class _Compensation:
    """The optimisation, and what stays from batch to batch."""

    def __init__(self, options: LIC, task: Task, progress: Progress) -> None:
        spec = task.spec
        self._options = options
        self._task = task
        self._progress = progress
        self._terms = task.terms()
        self._teachers = [
            (teacher, layers.resolve(teacher, options.layer, spec.channels, spec.size))
            for teacher in task.teachers
        ]
        # In normalised pixels, whatever networks see: half of a whitened image is no whitened one.
        self._plain = replace(spec, zca=None)

    def batch(self, chosen: Tensor, labels: Tensor, number: int) -> Tensor:
        """Make one batch of mosaics.

        Args:
            chosen: for each mosaic its real images, indices into the shard, [B, tiles^2].
            labels: of the mosaics, int64 [B].
            number: of the batch.

        Returns:
            uint8 [B, C, H, W] on the CPU.
        """
        options, task, plain = self._options, self._task, self._plain
        spec, tiles = task.spec, options.tiles
        real = task.shard.images[chosen.flatten()].to(task.device)
        originals, labels = spec.normalise(real), labels.to(task.device)
        images = mosaic.assemble(mosaic.shrink(plain.normalise(real), tiles), tiles)
        plain.clamp_(images).requires_grad_()
        optimizer = torch.optim.Adam([images], lr=options.lr, betas=(0.5, 0.9))
        stream = task.stream("batch", number)
        views = ViewOptions(scale=(options.crop, 1.0), flip=spec.flip)
        for step in range(options.iterations):
            factor = learning_rate_factor("cosine", step / options.iterations)
            set_learning_rate(optimizer, options.lr * factor)
            frames = crops.draw(len(originals), spec.size, views, stream)
            teacher, layer = self._teachers[step % len(self._teachers)]
            with torch.no_grad():
                wanted = layers.output_of(teacher, layer, crops.apply(originals, frames))
            shown = crops.apply(self._seen(mosaic.expand(images, tiles)), frames)
            found = layers.output_of(teacher, layer, shown)
            loss = F.mse_loss(found, wanted)
            for weight, term in self._terms:
                loss = loss + weight * term(self._seen(images), labels)
            (images.grad,) = torch.autograd.grad(loss, images)
            optimizer.step()
            plain.clamp_(images)
            self._progress.step(loss)
        return plain.to_uint8(images.detach()).cpu()

    def _seen(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels into what networks see; differentiable."""
        if self._task.spec.zca is None:
            return pixels
        low, high = self._plain.pixel_bounds(pixels.device)
        return self._task.spec.normalise(255 * (pixels - low) / (high - low))
