"""Coresets: real images as they are, chosen class by class; no image is chosen twice.

All order the images of a class, and hand out the first ones: the first k are the choice for k,
so a small set is part of a large one, and a client that is asked for more goes on where it ended.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from fedistill.config import ModelConfig
from fedistill.distillers.base import Distilled, Distiller, Task
from fedistill.images import DataSpec
from fedistill.models.features import classifier_of, features_of


class Coreset(Distiller):
    """A method that chooses real images."""

    @property
    def uses_real_images(self) -> bool:
        """They are all there is."""
        return True

    @property
    def takes_regularizers(self) -> bool:
        """Nothing is optimised."""
        return False

    @property
    def real_images_per_image(self) -> int:
        """An image is one real image."""
        return 1

    def distill(self, task: Task) -> Distilled:
        """Choose, one class after the other; there is no loss."""
        made = [sum(column) for column in zip(*task.made, strict=True)] or [0] * len(task.counts)
        chosen = [torch.empty(0, dtype=torch.int64)]
        for label, (before, count) in enumerate(zip(made, task.counts, strict=True)):
            mine = (task.shard.labels == label).nonzero()[:, 0]
            assert before + count <= len(mine), (label, before, count, len(mine))
            if count:
                order = self.choose(task, mine, label, before + count)
                chosen.append(mine[order[before:]])
            task.report(label + 1, len(task.counts), None)
        return Distilled(task.shard.images[torch.cat(chosen)], [])

    @abstractmethod
    def choose(self, task: Task, mine: Tensor, label: int, count: int) -> Tensor:
        """Choose images of a class.

        Args:
            task: what is asked; its `attempt` must not matter.
            mine: the images of the class, indices into the shard, [n].
            label: of the class.
            count: at most n.

        Returns:
            Places in `mine`, the first choice first, int64 [count] on the CPU.
        """


class FeatureCoreset(Coreset):
    """A method that chooses by the teachers' features before the classifier."""

    def check(self, model: nn.Module, config: ModelConfig, spec: DataSpec) -> None:
        """Refuse a network without a linear classifier: it has no such features."""
        super().check(model, config, spec)
        classifier_of(model)

    def choose(self, task: Task, mine: Tensor, label: int, count: int) -> Tensor:
        """Choose by the features of the class alone."""
        images = task.shard.images[mine]
        features = [
            _scaled(features_of(teacher, images, task.spec, task.dtype))
            for teacher in task.teachers
        ]
        return self.order(torch.cat(features, 1), count).cpu()

    @abstractmethod
    def order(self, features: Tensor, count: int) -> Tensor:
        """Choose by features, float32 [n, D]: places in them, int64 [count]."""


def _scaled(features: Tensor) -> Tensor:
    """Scale a teacher's features to mean square length 1: then several teachers weigh alike.

    The choice of one teacher stays what it was.
    """
    return features / features.square().sum(1).mean().sqrt().clamp(min=1e-12)
