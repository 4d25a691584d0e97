"""Options of gradient matching, the loop of `condenser.py`."""

from dataclasses import dataclass
from typing import Literal

from fedistill import augmentation
from fedistill.config import ModelConfig
from fedistill.losses.matching import Metric
from fedistill.models.convnet import WIDTH
from fedistill.rules import Rule, above_zero, at_least, below_one, check, share

Choice = Literal["clusters", "random"]


@dataclass(frozen=True, kw_only=True)
class MatchingOptions:
    """Options of the loop; metric, lr and schedule chosen on held-out images of MNIST.

    Attributes:
        iterations: steps of all images.
        restart: steps after which a fresh network takes over.
        lr: of SGD for one image, in normalised pixel units, at the first step.
        schedule: of that: `constant` (IDC, DREAM), or `cosine`, which ends at 0: runs much shorter
            than theirs end on what they have found, and not somewhere around it.
        momentum: of SGD.
        metric: how gradients are compared, see `losses/matching.py`.
        feature_weight: of the distance of mean features (DREAM+); 0: gradients alone.
        tiles: small images a side of each image.
        batch_real: real images of a class in each step; a class with fewer gives all.
        batch_synthetic: most views of a class of one set in each step.
        choice: `clusters` takes the real images nearest the centres of as many clusters of their
            features (DREAM), `random` takes random ones (IDC).
        interval: steps after which clusters are found again.
        candidates: random images of a class among which clusters are found, at least as many as
            there are to be clusters; None: all of them.
        augmentation: operations that each step composes, one draw for a class.
        width: filters of the networks.
        depth: blocks of the networks; None: by image size.
        network_lr: of SGD (momentum 0.9), for the networks.
        network_images: real images that a network is trained on after each step.
        network_batch_size: in batches of this size.
        network_mix: probability of CutMix for such a batch.
        chunk: most views that have a graph at once, but for those that extra terms are given.
    """

    iterations: int = 1000
    restart: int = 100
    lr: float = 0.03
    schedule: Literal["constant", "cosine"] = "cosine"
    momentum: float = 0.5
    metric: Metric = "l1"
    feature_weight: float = 0.0
    tiles: int = 2
    batch_real: int = 128
    batch_synthetic: int = 128
    choice: Choice = "clusters"
    interval: int = 10
    candidates: int | None = None
    augmentation: str = "color_crop_cutout"
    width: int = WIDTH
    depth: int | None = None
    network_lr: float = 0.01
    network_images: int = 500
    network_batch_size: int = 64
    network_mix: float = 0.5
    chunk: int = 128

    def __post_init__(self) -> None:
        check(*self.rules())

    def rules(self) -> list[Rule]:
        """Return the rules of these options, for a class that has others too."""
        return [
            at_least(
                self, 1,
                "iterations", "restart", "tiles", "batch_real", "batch_synthetic", "interval",
                "candidates", "width", "depth", "network_batch_size", "chunk",
            ),
            at_least(self, 0, "feature_weight", "network_images"),
            above_zero(self, "lr", "network_lr"),
            below_one(self, "momentum"),
            share(self, "network_mix"),
            augmentation.accepted(self.augmentation),
            (
                self.candidates is None
                or self.choice == "random"
                or self.candidates > self.batch_real,
                f"candidates is {self.candidates} and batch_real is {self.batch_real}: every "
                "candidate would be chosen; accepted: more candidates than batch_real, or choice: "
                "random",
            ),
        ]  # fmt: skip

    @property
    def network(self) -> ModelConfig:
        """The ConvNet whose gradients are matched; nothing in it depends on a batch."""
        return ModelConfig(depth=self.depth, width=self.width, norm="instance")
