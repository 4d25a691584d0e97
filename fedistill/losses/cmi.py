"""CMI: images of one class should look alike to a network trained on real data.

"Going Beyond Feature Similarity: Effective Dataset Distillation based on Class-Aware Conditional
Mutual Information" (ICLR 2025). The conditional mutual information I(S; Z | Y) between an image
S and what a network makes of it, given the class, is the mean distance of the images' softmax
vectors p_i from the mean q_c of their class:

    CMI = 1/B sum_i KL(p_i || q_c(i)),    q_c = mean of p_j over the images j of class c;

1/B is the paper's 1/(C n) where all C classes have n images. Gradients flow through q_c too, and
q_c is that of the synthetic images of the batch: their code leaves the real ones out. The softmax
is over the penultimate features, not over the classes.

One image of a class is its own mean: CMI needs batches with two or more images of a class.

Published weights, with ResNet-18 proxies (IPC 10 / 50):

    method      CIFAR-10         CIFAR-100        SVHN
    DM          8000 / 2000      2000 / 500       18000 / 500
    DC, DSA     50000 / 10000    80000 / 20000    80000 / 10000
    IDC         100 / 50         100 / 50         50 / 50

They are large because a softmax over 512 features is nearly flat; for `space: logits` they must
be far smaller. Published proxies: 1000 networks (200 suffice), each of 40 epochs.

Departures, each for a reason:
- the teachers themselves are the default network: they are there, and every client has some;
- proxies are ConvNets with instance norm and 32 filters by default: 512 features at 32 pixels, as
  many as a ResNet-18 has, for a hundredth of its work; a ResNet-18 here has BatchNorm and global
  pooling (theirs: instance norm, 4 x 4 pooling);
- proxies are trained by `teacher.squeeze`: with Nesterov momentum, and a learning rate that falls
  to 0.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill.config import ModelConfig, TeacherConfig
from fedistill.errors import ModelError
from fedistill.images import DataSpec
from fedistill.losses.base import Regularizer, Surroundings
from fedistill.models import build
from fedistill.models.features import classifier_of, penultimate
from fedistill.rules import at_least, check
from fedistill.seeding import generator
from fedistill.teacher import squeeze

_log = logging.getLogger(__name__)


def conditional_mutual_information(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean divergence of each image's softmax from the mean softmax of its class, in nats.

    Args:
        scores: of the images, before the softmax, [B, D].
        labels: int64 [B].

    Returns:
        Scalar; 0 where the images of each class agree, at most the log of their number.
    """
    counts = labels.unique(return_counts=True)[1].tolist()
    log_p = F.log_softmax(scores.float(), dim=1)[labels.argsort(stable=True)]
    divergences = []
    for own in log_p.split(counts):
        # logsumexp, not the log of a mean: a softmax over sharp scores holds zeros.
        log_q = own.logsumexp(0) - math.log(len(own))
        divergences.append((own.exp() * (own - log_q)).sum())
    return torch.stack(divergences).sum() / len(labels)


@dataclass(frozen=True, kw_only=True)
class CMI(Regularizer):
    """Options of the regulariser.

    Attributes:
        network: `teacher` asks the client's teachers; `proxy` trains a pool of networks on its
            shard first. Each call asks a random one of them.
        pool: how many proxies; they stay in the device's memory.
        epochs: that each proxy is trained.
        model: of the proxies: convnet (instance norm), or any other name that `model` takes.
        width: filters of a convnet proxy.
        space: what the softmax is over: the penultimate `features`, or the `logits`.
        every: a call acts with probability 1 / `every`, and then counts `every` times: the mean
            over the calls, and so the weight, stays. At random, because methods call once for
            each class or chunk, and every k-th call would then favour some.
    """

    network: Literal["teacher", "proxy"] = "teacher"
    pool: int = 5
    epochs: int = 10
    model: str = "convnet"
    width: int = 32
    space: Literal["features", "logits"] = "features"
    every: int = 1

    def __post_init__(self) -> None:
        check(at_least(self, 1, "pool", "epochs", "width", "every"))

    def check(self, model: nn.Module, spec: DataSpec) -> None:
        """Refuse a network to ask that does not exist, or has no features."""
        try:
            if self.network == "proxy":
                model = build(self._proxy, spec, 0, "check")
            if self.space == "features":
                classifier_of(model)
        except ModelError as error:
            raise ModelError(f"distill.regularizers, the networks of cmi: {error}") from error

    @property
    def _proxy(self) -> ModelConfig:
        if self.model == "convnet":
            return ModelConfig(width=self.width, norm="instance")
        return ModelConfig(name=self.model)

    def prepared(self, around: Surroundings) -> Regularizer:
        """Train the proxies if there are to be any."""
        networks = around.teachers if self.network == "teacher" else self._proxies(around)
        return _Asked(self, networks, generator(around.seed, *around.path, "cmi", "calls"))

    def _proxies(self, around: Surroundings) -> list[nn.Module]:
        # The published recipe: no augmentation.
        recipe = TeacherConfig(
            epochs=self.epochs,
            batch_size=256,
            lr=0.01,
            momentum=0.9,
            weight_decay=1e-3,
            warmup=0.0,
            shift=0,
            flip=False,
        )
        return [
            squeeze(
                around.shard,
                around.spec,
                self._proxy,
                recipe,
                seed=around.seed,
                path=(*around.path, "cmi", "proxy", number),
                device=around.device,
                dtype=around.dtype,
            )[0]
            for number in range(self.pool)
        ]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Refuse: a network is needed."""
        raise RuntimeError("CMI asks a network about the images; call what `prepared` returns")


class _Asked(Regularizer):
    """CMI with the networks to ask."""

    def __init__(
        self, options: CMI, networks: Sequence[nn.Module], stream: torch.Generator
    ) -> None:
        self._options = options
        self._networks = networks
        self._stream = stream
        self._warned = False

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the term for one batch; 0 for a call that does not act."""
        every = self._options.every
        network = self._networks[self._below(len(self._networks))]
        acts = self._below(every) == 0
        if len(labels.unique()) == len(labels):
            self._warn()
            acts = False
        if not acts:
            return 0 * images.sum()  # a graph, so that it has a gradient
        # In float32: the softmax is nearly flat, and only its differences count.
        scores = penultimate(network, images) if self._of_features else network(images)
        return every * conditional_mutual_information(scores, labels)

    @property
    def _of_features(self) -> bool:
        return self._options.space == "features"

    def _below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self._stream))

    def _warn(self) -> None:
        if not self._warned:
            _log.warning(
                "cmi is 0 for a batch with one image of each class, as it is at ipc 1; it needs "
                "two or more: a larger ipc, a larger batch_size, or batches in class order"
            )
        self._warned = True
