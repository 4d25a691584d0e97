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

from fedistill.training import autocast


class _Moments(torch.autograd.Function):
    """First and second moment over some dimensions, with a backward pass of one multiply-add.

    `torch.var_mean` over batch and space takes 20 times as long on a CPU, and its backward pass
    was two thirds of a recover step (experiments/LOG.md).
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, centre: Tensor, over: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        around = inputs.float() - centre[:, None, None]
        ctx.save_for_backward(inputs, centre)
        ctx.over = over
        return around.mean(over), around.square().mean(over)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        inputs, centre = ctx.saved_tensors
        kept = [1 if place in ctx.over else size for place, size in enumerate(inputs.shape)]
        of_first, of_second = (gradient.reshape(kept) for gradient in gradients)
        averaged = inputs.numel() // of_first.numel()
        slope = of_second * (2 / averaged)
        offset = of_first / averaged - slope * centre[:, None, None]
        return torch.addcmul(offset, inputs.float(), slope).to(inputs.dtype), None, None


def moments(inputs: Tensor, centre: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean of (x - centre) and of (x - centre)^2 over some dimensions.

    In float32: bfloat16 would lose the differences that are to be matched. A centre near the
    mean keeps a large mean from swallowing a small variance.

    Args:
        inputs: [B, K, H, W].
        centre: of each channel [K], or one for all [1]; without gradient.
        over: the dimensions.

    Returns:
        Two tensors with the dimensions that are left.
    """
    first, second = _Moments.apply(inputs, centre, over)
    return first, second


def image_moments(inputs: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of each image and channel over space.

    Args:
        inputs: [B, K, H, W].
        centre: [K] or [1], without gradient.

    Returns:
        Two tensors [B, K].
    """
    return moments(inputs, centre, (2, 3))


def _distance(
    found: tuple[Tensor, Tensor], centre: Tensor, groups: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """Mean over groups of images of ||mean_g - mean||_2 + ||var_g - var||_2.

    Args:
        found: moments of each image around `centre`, two tensors [B, K].
        centre: [K].
        groups: weight of each image in each group, rows sum to 1, [G, B].
        mean: wanted, [G, K].
        var: wanted, [G, K].
    """
    first, second = (groups @ moment for moment in found)
    of_mean: Tensor = (first - (mean - centre)).norm(dim=1)
    of_var: Tensor = (second - first.square() - var).norm(dim=1)
    return (of_mean + of_var).mean()


def whole_batch(images: int, device: torch.device) -> Tensor:
    """Return the groups [1, B] of which the only one holds all images."""
    return torch.full((1, images), 1 / images, device=device)


def by_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes present [G], and the groups [G, B] of their images."""
    classes, place = labels.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(place, len(classes)).to(torch.float32).T
    return classes, member / member.sum(1, keepdim=True)


def alignment(inputs: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Distance of a batch's channel statistics from given ones.

    Args:
        inputs: input of a BatchNorm layer, [B, K, H, W].
        running_mean: [K].
        running_var: [K].

    Returns:
        Scalar; `d * sqrt(K)` when all K means are off by d and the variances agree.
    """
    found = image_moments(inputs, running_mean)
    groups = whole_batch(len(inputs), inputs.device)
    return _distance(found, running_mean, groups, running_mean[None], running_var[None])


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
    classes, groups = by_class(labels)
    centre = real.mean[classes].mean(0)
    found = image_moments(inputs, centre)
    return _distance(found, centre, groups, real.mean[classes], real.var[classes])


@torch.no_grad()
def class_statistics(
    model: nn.Module,
    layers: Sequence[nn.BatchNorm2d],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    dtype: torch.dtype = torch.float32,
) -> list[ClassStatistics]:
    """Measure what each BatchNorm layer of a network sees of each class; one pass over the data.

    Args:
        model: in eval mode.
        layers: its BatchNorm layers.
        batches: normalised images [B, C, H, W] and labels [B].
        num_classes: classes without images get zeros.
        dtype: of the convolutions; over many images the rounding of activations averages out,
            that of the sums would not.
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
            with autocast(device, dtype):
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
        self._batch = whole_batch(len(labels), labels.device)
        self._classes, self._groups = by_class(labels)
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
            mean, var = layer.running_mean, layer.running_var
            assert mean is not None
            assert var is not None
            found = image_moments(args[0], mean)  # serve the batch and the classes alike
            term = self._weight * _distance(found, mean, self._batch, mean[None], var[None])
            if self._class_weight:
                real = self._real[number]
                wanted = real.mean[self._classes], real.var[self._classes]
                of_classes = _distance(found, mean, self._groups, *wanted)
                term = term + self._class_weight * of_classes
            self._terms.append(term * (1.0 if number else self._first_weight))

        return collect

    def take(self) -> Tensor:
        """Return the weighted sum over all layers since the last call, and forget it."""
        total = torch.stack(self._terms).sum()
        self._terms.clear()
        return total
