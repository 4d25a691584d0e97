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

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedistill.distillers.base import Task
from fedistill.distillers.inversion import Inversion, Objective, Show, shard_batches
from fedistill.losses.statistics import (
    BatchNormAlignment,
    ClassStatistics,
    class_statistics,
)
from fedistill.models.build import batch_norms
from fedistill.rules import Rule, at_least


@dataclass(frozen=True, kw_only=True)
class SRe2L(Inversion):
    """Options of SRe2L, beside those of `Inversion`.

    Attributes:
        bn_weight: of the BatchNorm term (`r_bn`).
        first_bn_weight: extra factor of the first layer (`first_bn_multiplier`).
        class_bn_weight: of the same term class by class, against the statistics of the shard's
            images of that class (LPLD, EDC); 0 is SRe2L as published.
    """

    bn_weight: float = 1.0
    first_bn_weight: float = 10.0
    class_bn_weight: float = 0.0

    def rules(self) -> list[Rule]:
        """See `Inversion`."""
        weights = at_least(self, 0, "bn_weight", "first_bn_weight", "class_bn_weight")
        return [*super().rules(), weights]

    @property
    def needs_batch_norm(self) -> bool:
        """The statistics of BatchNorm layers are what is matched."""
        return True

    @property
    def batches_stand_alone(self) -> bool:
        """Every batch has its own noise and its own views."""
        return True

    def objective(self, task: Task) -> Objective:
        """Measure each class's statistics, if they are to be matched."""
        return _Alignment(self, task)


class _Alignment(Objective):
    """Logits and BatchNorm statistics of one teacher, the next one's in the next iteration."""

    def __init__(self, options: SRe2L, task: Task) -> None:
        self._options = options
        self._teachers = task.teachers
        self._real = [_class_statistics(options, task, teacher) for teacher in task.teachers]

    def start(self, labels: Tensor, number: int) -> None:
        """See `Objective`."""
        self._labels = labels
        self._iteration = number * self._options.iterations  # the count of teachers runs on
        self._alignments = [
            BatchNormAlignment(
                batch_norms(teacher),
                labels,
                weight=self._options.bn_weight,
                first_weight=self._options.first_bn_weight,
                class_weight=self._options.class_bn_weight,
                real=real,
            )
            for teacher, real in zip(self._teachers, self._real, strict=True)
        ]

    def loss(self, images: Tensor, show: Show) -> Tensor:
        """Cross-entropy and alignment."""
        asked = self._iteration % len(self._teachers)
        self._iteration += 1
        with self._alignments[asked] as alignment:
            logits = self._teachers[asked](show(images))
        return F.cross_entropy(logits, self._labels) + alignment.take()


def _class_statistics(options: SRe2L, task: Task, teacher: nn.Module) -> list[ClassStatistics]:
    if not options.class_bn_weight:
        return []
    return class_statistics(
        teacher, batch_norms(teacher), shard_batches(task), task.spec.num_classes, task.dtype
    )
