"""Image norm: pixels should stay near the data's mean (SRe2L's `l2_scale`)."""

from dataclasses import dataclass

from torch import Tensor

from fedistill.losses.base import Regularizer


@dataclass(frozen=True, kw_only=True)
class ImageNorm(Regularizer):
    """Mean over the images of their L2 norm, SRe2L's `mean_i ||x_i||_2`."""

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean norm of a batch of normalised images."""
        mean: Tensor = images.flatten(1).norm(dim=1).mean()
        return mean
