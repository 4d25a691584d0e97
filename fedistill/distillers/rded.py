"""RDED: keep the crops of real images that the teacher finds most typical, and tile them.

Sun, Shi, Xie and Liu, "On the Diversity and Realism of Distilled Dataset" (CVPR 2024). For each
class, of `pool` random images `crops` random square crops each are scored,

    s = -CE(teacher(pad(crop)), y),

the best crop of every image is kept, and of these the best count * factor^2. Composite j holds
the crops of ranks j, j + count, j + 2 count, ..., so that each mixes good and worse ones.

As in the authors' code, and not in the paper: a crop is resized to frame / factor; where that is
smaller than the frame, the teacher sees it in the middle of a frame of zeros, not enlarged. Zero
is meant in normalised units: the mean colour of the data set, not black.

Departures:
- boxes are not rounded to whole pixels. A crop is read at the size of the frame (bilinear; that
  never shrinks), and for factor > 1 then shrunk with antialiasing; what is scored has been
  rounded to uint8, as it is kept (theirs: JPEG, later);
- where the pool would hold too few images for a client's share, it grows to what is needed;
- several teachers: the mean of their losses;
- images are normalised, or whitened, as the data set says (theirs: by ImageNet's colours).

The first k composites are prefixes of the set: with factor 1 they are the k best crops, with a
larger factor they differ from those that would be made for k alone. A client that is asked again
draws another pool, of the images that it has not used, and other crops.

Cost: pool * crops forward passes a class (1500 with the defaults), no backward pass.
Published: factor 1 up to 64 pixels, 2 for ImageNet; 5 crops; 300 images. Students: protocol
`rded`. Published accuracy (CIFAR-10, IPC 1 / 10 / 50, best of several epochs): ConvNet
23.5 / 50.2 / 68.4, ResNet-18 22.9 / 37.1 / 62.1; CIFAR-100 ConvNet 19.6 / 48.1 / 57.0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.config import ModelConfig
from fedistill.crops import ViewOptions, Views, apply, draw
from fedistill.distillers.base import Distilled, Distiller, Task
from fedistill.images import DataSpec
from fedistill.rules import areas, at_least, check
from fedistill.training import autocast

_CHUNK = 500  # crops in one forward pass


@dataclass(frozen=True, kw_only=True)
class RDED(Distiller):
    """Options of RDED.

    Attributes:
        factor: a composite is factor x factor crops; 2 for images of 224 pixels and more.
        crops: scored of each image (`num_crop`).
        pool: real images of each class that are looked at (`mipc`).
        scale: least and most area of a crop, as a share of the image.
    """

    factor: int = 1
    crops: int = 5
    pool: int = 300
    scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        check(at_least(self, 1, "factor", "crops", "pool"), areas("scale", self.scale))

    @property
    def uses_real_images(self) -> bool:
        """A composite is made of their crops."""
        return True

    @property
    def takes_regularizers(self) -> bool:
        """Nothing is optimised."""
        return False

    @property
    def real_images_per_image(self) -> int:
        """One for each crop."""
        return self.factor**2

    @property
    def mosaic_tiles(self) -> int:
        """Views of single crops are what students need."""
        return self.factor

    def check(self, model: nn.Module, config: ModelConfig, spec: DataSpec) -> None:
        """Refuse mosaics that the data do not allow."""
        super().check(model, config, spec)
        mosaic.require_tiles(self.factor, spec.size, "distill.factor")
        mosaic.require_unwhitened(self.factor, spec, "distill.factor")

    @torch.no_grad()
    def distill(self, task: Task) -> Distilled:
        """Score, rank and tile, one class after the other; the loss told is that of the kept."""
        spec = task.spec
        made = [torch.empty((0, spec.channels, spec.size, spec.size), dtype=torch.uint8)]
        asked = [label for label, count in enumerate(task.counts) if count]
        for done, label in enumerate(asked, 1):
            index, views, loss = _best(self, task, label)
            patches = torch.cat([part.cpu() for part in _cut(self, task, index, views)])
            made.append(mosaic.assemble(patches, self.factor))
            task.report(done, len(asked), loss)
        return Distilled(torch.cat(made), [])


def _best(options: RDED, task: Task, label: int) -> tuple[Tensor, Views, float]:
    """Find the crops of a class that are kept, of images that no earlier request has used.

    Returns:
        Their images (indices into the shard) and boxes, composite by composite, and their mean
        loss.
    """
    mine = (task.shard.labels == label).nonzero()[:, 0]
    for earlier in task.earlier():
        if earlier.counts[label]:
            mine = mine[~torch.isin(mine, _best_of(options, earlier, label, mine)[0])]
    return _best_of(options, task, label, mine)


def _best_of(options: RDED, task: Task, label: int, mine: Tensor) -> tuple[Tensor, Views, float]:
    """Do the same among some images of the class."""
    count = task.counts[label]
    wanted = count * options.real_images_per_image
    assert wanted <= len(mine), f"asked for {wanted} crops of class {label}, has {len(mine)} images"
    order = torch.randperm(len(mine), generator=task.stream("pool", label))
    pool = mine[order[: max(options.pool, wanted)]]
    square = ViewOptions(scale=options.scale, ratio=(1.0, 1.0))
    candidates = pool.repeat_interleave(options.crops)
    views = draw(len(candidates), task.spec.size, square, task.stream("crops", label))
    losses = _losses(options, task, label, candidates, views).view(-1, options.crops)
    best = losses.argmin(1)
    of_image = losses.gather(1, best[:, None])[:, 0]
    kept = mosaic.strided(of_image.argsort(stable=True)[:wanted], count)
    crop = kept * options.crops + best[kept]
    return candidates[crop], views.select(crop), float(of_image[kept].mean())


def _losses(options: RDED, task: Task, label: int, index: Tensor, views: Views) -> Tensor:
    """Return the teachers' mean loss for one crop each of some images, [M] on the CPU."""
    spec, found = task.spec, []
    for patches in _cut(options, task, index, views):
        frames = spec.normalise(_framed(patches, spec))
        inputs = frames.contiguous(memory_format=torch.channels_last)
        labels = torch.full((len(inputs),), label, device=task.device)
        losses = []
        for teacher in task.teachers:
            with autocast(task.device, task.dtype):
                logits = teacher(inputs)
            losses.append(F.cross_entropy(logits.float(), labels, reduction="none"))
        found.append(torch.stack(losses).mean(0).cpu())
    return torch.cat(found)


def _cut(options: RDED, task: Task, index: Tensor, views: Views) -> Iterator[Tensor]:
    """Yield crops of images in chunks, uint8 [B, C, H / factor, W / factor]."""
    for chunk in torch.arange(len(index)).split(_CHUNK):
        # In pixels: a crop of a whitened image is no whitened crop.
        images = task.shard.images[index[chunk]].to(task.device).float()
        patches = mosaic.shrink(apply(images, views.select(chunk)), options.factor)
        yield patches.round().to(torch.uint8)


def _framed(patches: Tensor, spec: DataSpec) -> Tensor:
    """Put patches in the middle of frames of the data set's mean colour, float32 in 0 to 255."""
    colour = 255 * torch.tensor(spec.mean, device=patches.device)[:, None, None]
    before = (spec.size - patches.shape[-1]) // 2
    after = spec.size - patches.shape[-1] - before
    return F.pad(patches - colour, (before, after, before, after)) + colour
