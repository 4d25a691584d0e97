"""G-VBSM: SRe2L with more statistics, several backbones and a term against copies.

Shao, Yin, Zhou, Zhang and Shen, "Generalized Large-Scale Data Condensation via Various Backbone
and Statistical Matching" (CVPR 2024), Sec. 3:

    L = CE(teacher_t(view(x)), y) + statistics_weight * LayerMatching + densify_weight * DD.

In iteration t the teacher t mod K is asked, counted on over the batches (`teacher.backbones` says
which networks a client trains); `losses/layer_statistics.py` and `losses/densification.py` have
the terms. Batches hold all images of some classes, so that DD compares images of one class.
Convolutions have statistics in any network: BatchNorm layers are matched where there are some.

Departures from the authors' code, each for a reason:
- the moving average of the statistics starts at their first value (theirs: at 0, by a slip of a
  type test, so that the first iterations see far too small statistics); like theirs it is never
  reset;
- statistics of real data are those of all images together (theirs: means over batches of 64,
  whose variances are smaller), each under one view of the kind that synthetic images have;
- a side that is no multiple of 4 is cut into equal parts (theirs: resized first);
- every image has its own crop and mirror; no cyclic shift (theirs: by up to 32 of 32 pixels);
- DD on eigenvalues that do not saturate: see there.

Published (CIFAR-10): 4000 iterations, lr 0.05 (ImageNet: 0.1), statistics_weight 0.01, momentum
0.8, drop 0.4 (ImageNet: 0), batches of 100, crops by padding with 4 pixels; ResNet-18, ConvNet of
width 128, MobileNetV2 of half the width, WRN-16-2, ShuffleNetV2 0.5. Ours, for small images and a
ConvNet on a CPU: 1000 iterations, lr 0.1 and statistics_weight 1, chosen on held-out images of
MNIST, and the crops of our SRe2L; everything else as published.

Published accuracy (ResNet-18, CIFAR-10, IPC 10 / 50): 53.5 / 59.2; ConvNet 46.5 / 54.3.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedistill.distillers.base import Task
from fedistill.distillers.inversion import Inversion, Objective, Order, Show, shard_batches
from fedistill.losses.densification import densification
from fedistill.losses.layer_statistics import LayerMatching, layer_statistics
from fedistill.rules import Rule, at_least, below_one


@dataclass(frozen=True, kw_only=True)
class GVBSM(Inversion):
    """Options of G-VBSM, beside those of `Inversion`.

    Attributes:
        statistics_weight: of the distance from the statistics of real data (`r_loss`).
        first_weight: extra factor of the first layer (`first_multiplier`).
        momentum: share of the past in the statistics that are compared (alpha in the paper).
        drop: probability that a convolution is left out of one iteration (beta_dr).
        densify_weight: of data densification (`nuc_norm`).
    """

    order: Order = "class"
    statistics_weight: float = 1.0
    first_weight: float = 10.0
    momentum: float = 0.8
    drop: float = 0.4
    densify_weight: float = 1.0

    def rules(self) -> list[Rule]:
        """See `Inversion`."""
        return [
            *super().rules(),
            at_least(self, 0, "statistics_weight", "first_weight", "densify_weight"),
            below_one(self, "momentum", "drop"),
        ]

    @property
    def optimises_jointly(self) -> bool:
        """Their joint statistics are matched."""
        return True

    def objective(self, task: Task) -> Objective:
        """Measure what every teacher sees of the shard."""
        return Matching(self, task)


class Matching(Objective):
    """Logits and layer statistics of one teacher, the next one's in the next iteration.

    Args:
        options: of the method.
        task: with the teachers and the real data.
        alpha: weight of the whole batch's statistics; the rest is that of its classes.
    """

    def __init__(self, options: GVBSM, task: Task, alpha: float = 1.0) -> None:
        self._options = options
        self._teachers = task.teachers
        self._matchings = [
            LayerMatching(
                teacher,
                layer_statistics(
                    teacher,
                    shard_batches(task, options.views(task.spec)),
                    task.spec.num_classes,
                    task.dtype,
                ),
                alpha=alpha,
                first_weight=options.first_weight,
                momentum=options.momentum,
                drop=options.drop,
                stream=task.stream("drop", number),
            )
            for number, teacher in enumerate(task.teachers)
        ]
        self._iteration = 0

    def start(self, labels: Tensor, number: int) -> None:
        """See `Objective`."""
        self._labels = labels
        for matching in self._matchings:
            matching.start(labels)

    def loss(self, images: Tensor, show: Show) -> Tensor:
        """Cross-entropy, statistics and densification."""
        return self.match(images, show)[0]

    def match(self, images: Tensor, show: Show) -> tuple[Tensor, Tensor, nn.Module]:
        """Return the loss, and the teacher's logits with the teacher that was asked."""
        options = self._options
        asked = self._iteration % len(self._teachers)
        self._iteration += 1
        logits, distance = self._matchings[asked](show(images))
        loss = F.cross_entropy(logits, self._labels) + options.statistics_weight * distance
        if options.densify_weight:
            loss = loss + options.densify_weight * densification(images, self._labels)
        return loss, logits, self._teachers[asked]
