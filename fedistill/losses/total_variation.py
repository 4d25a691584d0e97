"""Total variation: neighbouring pixels should be alike (`tv_l2` of SRe2L and DeepInversion)."""

from dataclasses import dataclass

from torch import Tensor

from fedistill.losses.base import Regularizer


def total_variation(images: Tensor) -> Tensor:
    """Sum of the L2 norms of the differences between neighbours in four directions.

    DeepInversion's form (Yin et al. 2020, Eq. 3), which SRe2L took over: the norm is over the
    whole batch and is not squared.

    Args:
        images: [B, C, H, W].
    """
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    total: Tensor = across.norm() + down.norm() + falling.norm() + rising.norm()
    return total


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Regularizer):
    """Total variation of the images themselves."""

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the total variation of a batch of images."""
        return total_variation(images)
