"""Flatness: a teacher should answer to images as it does to their moving average (EDC).

Shao et al., "Elucidating the Design Space of Dataset Condensation" (NeurIPS 2024), Sec. 3: an
image at which the loss is flat answers like its neighbours on the way there. With z the
logits, under the same crop and mirror,

    KL( softmax(z(x_EMA) / T) || softmax(z(x) / T) ),    x_EMA <- rate x_EMA + (1 - rate) x.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedistill.losses.soft_labels import soft_kl


class Flatness:
    """The term for one batch of images, which keeps their moving average.

    Args:
        rate: share of the past in the average.
        temperature: T.
    """

    def __init__(self, rate: float, temperature: float) -> None:
        self._rate = rate
        self._temperature = temperature
        self._average: Tensor | None = None

    def __call__(
        self, images: Tensor, logits: Tensor, answer: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the term, and take the images into the average.

        Args:
            images: being optimised, [B, C, H, W].
            logits: of the teacher for them, [B, num_classes].
            answer: the same teacher's logits for other images, under the same view.

        Returns:
            Scalar, mean over the images; 0 for the first images.
        """
        with torch.no_grad():
            if self._average is None:
                self._average = images.clone()
            wanted = answer(self._average)
            self._average.lerp_(images, 1 - self._rate)
        return soft_kl(logits, wanted, self._temperature)
