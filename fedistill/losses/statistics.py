"""BatchNorm alignment: a batch should look to every layer like the data the teacher has seen.

SRe2L Eq. 6, from DeepInversion: for the input of each BatchNorm layer l,

    w_l * ( ||mu_l(x) - RM_l||_2 + ||var_l(x) - RV_l||_2 ),   w_0 = `first_weight`, others 1,

with mean and biased variance over batch and space, and RM, RV the layer's running statistics.
The norms are neither squared nor divided by the number of channels, as in SRe2L's code.

With class statistics the same distance is also taken class by class, from the statistics of the
real images of that class (LPLD's class-wise supervision; Form 2 of EDC's matching): without it a
batch may balance empty images of one class with crowded ones of another.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class _ChannelMoments(torch.autograd.Function):
    """Mean and variance of each channel, with a backward pass of one product and sum.

    `torch.var_mean` over batch and space takes 7 times as long forward and 15 times backward on
    a CPU (experiments/LOG.md), which was two thirds of a recover step.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        # In float32: bfloat16 would lose the differences that are to be matched.
        rows = inputs.permute(0, 2, 3, 1).flatten(0, 2).float()
        mean = rows.mean(0)
        # Around a rough centre, so that a large mean does not swallow a small variance.
        centre = rows[0].clone()
        around = rows - centre
        var = (around * around).mean(0) - (mean - centre) ** 2
        ctx.save_for_backward(inputs, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        inputs, mean = ctx.saved_tensors
        of_mean, of_var = gradients
        count = inputs.numel() / inputs.shape[1]
        slope = (2 / count * of_var)[:, None, None]
        offset = (of_mean / count)[:, None, None] - slope * mean[:, None, None]
        return torch.addcmul(offset, inputs.float(), slope).to(inputs.dtype)


def channel_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over batch and space.

    Args:
        inputs: [B, K, H, W].

    Returns:
        Two float32 tensors [K].
    """
    mean, var = _ChannelMoments.apply(inputs)
    return mean, var


def alignment(inputs: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Distance of a batch's channel statistics from given ones.

    Args:
        inputs: input of a BatchNorm layer, [B, K, H, W].
        running_mean: [K].
        running_var: [K].

    Returns:
        Scalar; `d * sqrt(K)` when all K means are off by d and the variances agree.
    """
    mean, var = channel_moments(inputs)
    distance: Tensor = (mean - running_mean).norm() + (var - running_var).norm()
    return distance


@dataclass(frozen=True)
class ClassStatistics:
    """What a BatchNorm layer sees of each class in real data.

    Attributes:
        mean: over the images of a class and space, [num_classes, K].
        var: the same, biased, [num_classes, K].
    """

    mean: Tensor
    var: Tensor


def class_alignment(inputs: Tensor, labels: Tensor, real: ClassStatistics) -> Tensor:
    """Distance of the statistics of each class in a batch from those of the real images.

    Args:
        inputs: input of a BatchNorm layer, [B, K, H, W].
        labels: int64 [B].
        real: of the same layer.

    Returns:
        Scalar: the mean over the classes present of ||mean_c - M_c||_2 + ||var_c - V_c||_2.
    """
    classes, place = labels.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(place, len(classes)).to(torch.float32).T
    member = member / member.sum(1, keepdim=True)
    inputs = inputs.float()
    mean = member @ inputs.mean((2, 3))
    var = member @ inputs.square().mean((2, 3)) - mean.square()
    distance: Tensor = (mean - real.mean[classes]).norm(dim=1)
    distance = distance + (var - real.var[classes]).norm(dim=1)
    return distance.mean()


@torch.no_grad()
def class_statistics(
    model: nn.Module,
    layers: Sequence[nn.BatchNorm2d],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
) -> list[ClassStatistics]:
    """Measure what each BatchNorm layer of a network sees of each class; one pass over the data.

    Args:
        model: in eval mode.
        layers: its BatchNorm layers.
        batches: normalised images [B, C, H, W] and labels [B].
        num_classes: classes without images get zeros.
    """
    inputs: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, number=number: inputs.update({number: args[0]})
        )
        for number, layer in enumerate(layers)
    ]
    device = next(model.parameters()).device
    count = torch.zeros(num_classes, 1, device=device)
    first = [torch.zeros(num_classes, layer.num_features, device=device) for layer in layers]
    second = [torch.zeros_like(total) for total in first]
    try:
        for images, labels in batches:
            model(images)
            member = torch.nn.functional.one_hot(labels, num_classes).to(torch.float32).T
            count += member.sum(1, keepdim=True)
            for number in range(len(layers)):
                seen = inputs[number].float()
                first[number] += member @ seen.mean((2, 3))
                second[number] += member @ seen.square().mean((2, 3))
    finally:
        for hook in hooks:
            hook.remove()
    count = count.clamp(min=1)
    means = [total / count for total in first]
    return [
        ClassStatistics(mean, total / count - mean.square())
        for mean, total in zip(means, second, strict=True)
    ]


class BatchNormAlignment:
    """Sums the distances over the BatchNorm layers of a network, for its latest forward pass.

    A context manager: hooks are on the layers inside the block only.

    Args:
        layers: BatchNorm layers in order of depth.
        labels: classes of the batch, int64 [B].
        weight: of the distance of the whole batch from the running statistics.
        first_weight: further factor of the first layer (SRe2L: 10).
        class_weight: of the distance class by class; 0: not taken.
        real: statistics of the classes for each layer; needed when `class_weight` is above 0.
    """

    def __init__(
        self,
        layers: Sequence[nn.BatchNorm2d],
        labels: Tensor,
        *,
        weight: float = 1.0,
        first_weight: float = 1.0,
        class_weight: float = 0.0,
        real: Sequence[ClassStatistics] = (),
    ) -> None:
        self._layers = layers
        self._labels = labels
        self._weight = weight
        self._first_weight = first_weight
        self._class_weight = class_weight
        self._real = real
        self._terms: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "BatchNormAlignment":
        for number, layer in enumerate(self._layers):
            self._hooks.append(layer.register_forward_pre_hook(self._collector(number)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _collector(self, number: int) -> Any:
        def collect(layer: nn.BatchNorm2d, args: tuple[Tensor, ...]) -> None:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            term = self._weight * alignment(args[0], layer.running_mean, layer.running_var)
            if self._class_weight:
                real = self._real[number]
                term = term + self._class_weight * class_alignment(args[0], self._labels, real)
            self._terms.append(term * (1.0 if number else self._first_weight))

        return collect

    def take(self) -> Tensor:
        """Return the weighted sum over all layers since the last call, and forget it."""
        total = torch.stack(self._terms).sum()
        self._terms.clear()
        return total
