"""What an extra loss term looks like: a frozen dataclass of options that can be called."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fedistill.config import STRICT


class Regularizer(ABC):
    """A term added to the image loss of any distiller."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the term before its weight.

        Args:
            images: the images being optimised, normalised, [B, C, H, W].
            labels: their classes, int64 [B].
            logits: the teacher's answer to their views, [B, num_classes].

        Returns:
            Scalar.
        """
