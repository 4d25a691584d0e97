"""What DREAM, MIBDC, MDC and nested sets share: a start from real images, and gradient matching."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.condenser import Condenser, Images
from fedistill.config import ModelConfig
from fedistill.distillers.base import Distilled, Distiller, Progress, Task
from fedistill.images import DataSpec
from fedistill.matching_options import MatchingOptions
from fedistill.models import build
from fedistill.models.build import require_network
from fedistill.reference import RealBatches, Reference


@dataclass(frozen=True, kw_only=True)
class Condensation(MatchingOptions, Distiller):
    """A method that matches gradients; options beside those of the loop.

    Attributes:
        init: `clusters` makes tiles of the real images nearest the centres of clusters of a random
            network's features (DREAM), `random` of random ones (IDC); `noise` starts from N(0, 1)
            in normalised units.
    """

    init: Literal["clusters", "random", "noise"] = "clusters"

    @property
    def optimises_jointly(self) -> bool:
        """It is the mean gradient of a class that is matched."""
        return True

    @property
    def depends_on_ipc(self) -> bool:
        """Views of a set are drawn by its name, and its curves have it."""
        return True

    @property
    def uses_real_images(self) -> bool:
        """Only a start from real images shows any."""
        return self.init != "noise"

    @property
    def mosaic_tiles(self) -> int:
        """An image is made to be seen tile by tile."""
        return self.tiles

    def check(self, model: nn.Module, config: ModelConfig, spec: DataSpec) -> None:
        """Refuse tiles that do not fill an image, and networks too deep; any teacher will do."""
        super().check(model, config, spec)
        mosaic.require_tiles(self.tiles, spec.size, "distill.tiles")
        require_network(self.network, spec, "distill.depth, networks of gradient matching")

    def distill(self, task: Task) -> Distilled:
        """Optimise the images of one set."""
        (found,) = self.together([task])
        return found

    def together(self, tasks: Sequence[Task]) -> list[Distilled]:
        """Optimise the images of several sets in one loop; the tasks differ in size alone."""
        reference = reference_of(tasks[0])
        sets = [self.first(task, reference) for task in tasks]
        progress = Progress(tasks[0], self.iterations)
        loop = self.condenser(tasks, reference, sets)
        loop.run(lambda losses: progress.step(losses.sum()))
        return [
            Distilled(task.spec.to_uint8(own.pixels.detach()).cpu(), progress.curve, loop.curves)
            for task, own in zip(tasks, sets, strict=True)
        ]

    @abstractmethod
    def condenser(
        self, tasks: Sequence[Task], reference: Reference, sets: Sequence[Images]
    ) -> Condenser:
        """Return the loop over the sets of some tasks."""

    def first(self, task: Task, reference: Reference) -> Images:
        """Return what one set starts from."""
        start = self._noise(task) if self.init == "noise" else self._mosaics(task, reference)
        return Images(start, task.counts, task.ipc, self, reference)

    def _noise(self, task: Task) -> Tensor:
        shape = (sum(task.counts), task.spec.channels, task.spec.size, task.spec.size)
        return torch.randn(shape, generator=task.stream("noise"))

    def _mosaics(self, task: Task, reference: Reference) -> Tensor:
        """Make mosaics of real images; where a class has too few, the other tiles are noise."""
        network = build(self.network, task.spec, task.seed, *reference.path, "network", "start")
        network.to(task.device)
        batches = RealBatches(self, reference, "start")
        tiles = mosaic.split(self._noise(task), self.tiles)
        start = 0
        for label, count in enumerate(task.counts):
            wanted = count * self.tiles**2
            if wanted:
                chosen = (
                    batches.clustered(network, label, wanted)
                    if self.init == "clusters"
                    else batches.shuffled(label)[:wanted]
                )
                real = task.spec.normalise(task.shard.images[chosen])
                tiles[start : start + len(chosen)] = mosaic.shrink(real, self.tiles)
            start += wanted
        return mosaic.assemble(tiles, self.tiles)


def reference_of(task: Task) -> Reference:
    """Return the shard of a task as what sets are matched to."""
    return Reference(
        images=task.shard,
        spec=task.spec,
        seed=task.seed,
        path=("recover", task.partition_id, task.attempt),
        device=task.device,
    )
