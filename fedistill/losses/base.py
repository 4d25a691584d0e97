"""What an extra loss term looks like: a frozen dataclass of options that can be called."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedistill.config import STRICT
from fedistill.images import DataSpec, ImageSet


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a term may use of the client it works for.

    Attributes:
        shard: the client's real images.
        teachers: the client's own, in eval mode, without gradients.
        spec: of the data set.
        seed: of the experiment.
        path: stage and ids; enters every seed.
        device: where to work.
        dtype: convolutions may run in this type where the maths allows it.
    """

    shard: ImageSet
    teachers: Sequence[nn.Module]
    spec: DataSpec
    seed: int
    path: tuple[str | int, ...]
    device: torch.device
    dtype: torch.dtype


class Regularizer(ABC):
    """A term added to the image loss of any distiller that optimises."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    def check(self, model: nn.Module, spec: DataSpec) -> None:
        """Refuse a teacher's network, freshly made, or a data set that the term cannot use.

        Raises:
            ModelError: with what is accepted.
        """
        return

    def prepared(self, around: Surroundings) -> "Regularizer":
        """Return the term that one client's optimisation calls; most need nothing more."""
        return self

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the term before its weight.

        Args:
            images: the images being optimised, normalised, [B, C, H, W].
            labels: their classes, int64 [B].

        Returns:
            Scalar.
        """
