"""Layer statistics: a batch should look to every convolution like real data (G-VBSM, EDC).

For the input x of every Conv2d and every BatchNorm2d layer, with mean and variance over batch and
space for each channel (and, for a Conv2d, over batch, channels and 4 x 4 pixels for each patch),

    L = sum_l w_l ( ||mean_l(x) - M_l||_2 + ||var_l(x) - V_l||_2 ),   w_l = `first_weight`, or 1,

where M and V are those of the client's real images; for a BatchNorm layer, its running
statistics (G-VBSM Sec. 3). EDC's soft category-aware matching (its Eq. 5) takes the same distance
class by class too: alpha L(all) + (1 - alpha) sum_c p(c) L(class c), p(c) the share of the batch.

What is compared is a moving average over the iterations through which the gradient passes as if
it were the current value alone: v = EMA(v) + v_now - stop_gradient(v_now).

All statistics of a network stand side by side as the N columns of one matrix, whose rows are the
whole batch and the classes: few large operations in place of many small ones.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from fedistill.losses.statistics import by_class, image_moments, moments, whole_batch
from fedistill.training import autocast

_PATCH = 4  # pixels a side (G-VBSM's code)
_SMALLEST = 1e-12  # a squared norm below this has no slope: that of a root at 0 is infinite

Moments = tuple[Tensor, Tensor]


@cache
def _bands(size: int, device: torch.device) -> Tensor:
    """Return the weights [ceil(size / 4), size] that average `size` pixels to equal bands."""
    count = math.ceil(size / _PATCH)
    pixel = torch.arange(size, device=device)
    edge = torch.arange(count + 1, device=device)[:, None] * size / count
    covered = torch.minimum(edge[1:], pixel + 1) - torch.maximum(edge[:-1], pixel)
    return covered.clamp(min=0) * count / size


def patch_moments(inputs: Tensor, centre: Tensor) -> Moments:
    """Moments of each image and patch over channels and the patch's pixels.

    A side that is no multiple of 4 is cut into ceil(side / 4) equal parts.

    Args:
        inputs: [B, K, H, W].
        centre: what is subtracted first, [1], without gradient.

    Returns:
        Means of (x - centre) and (x - centre)^2, two tensors [B, P], row by row.
    """
    rows, columns = (_bands(size, inputs.device) for size in inputs.shape[2:])
    first, second = (
        (rows @ moment @ columns.T).flatten(1) for moment in moments(inputs, centre, (1,))
    )
    return first, second


@dataclass(frozen=True)
class Tap:
    """A place in a network where one kind of statistic is taken: the input of a layer.

    Attributes:
        layer: a Conv2d or a BatchNorm2d.
        patches: moments of patches, not of channels.
    """

    layer: nn.Module
    patches: bool

    def moments(self, inputs: Tensor, centre: Tensor) -> Moments:
        """Return the moments [B, n] of each image, in float32 whatever the network runs in."""
        with autocast(inputs.device, torch.float32):
            return patch_moments(inputs, centre) if self.patches else image_moments(inputs, centre)


def taps(model: nn.Module) -> list[Tap]:
    """List the statistics of a network that are matched."""
    found = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            found.append(Tap(layer, patches=False))
        if isinstance(layer, nn.Conv2d):
            found.append(Tap(layer, patches=True))
    return found


def observe(
    model: nn.Module, images: Tensor, places: Sequence[Tap], centres: Sequence[Tensor]
) -> tuple[Tensor, list[Moments]]:
    """Show images to a network and take the moments of each image on the way.

    Args:
        model: in eval mode.
        images: normalised, [B, C, H, W].
        places: where moments are taken.
        centres: what is subtracted at each place, [K] or [1].

    Returns:
        The logits, and for each place two tensors [B, n].
    """
    seen: dict[int, Moments] = {}

    def taker(number: int, tap: Tap, centre: Tensor) -> Callable[..., None]:
        return lambda _, args: seen.update({number: tap.moments(args[0], centre)})

    hooks = [
        tap.layer.register_forward_pre_hook(taker(number, tap, centre))
        for number, (tap, centre) in enumerate(zip(places, centres, strict=True))
    ]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, [seen[number] for number in range(len(places))]


@dataclass(frozen=True)
class LayerStatistics:
    """What real data looks like to a network.

    Attributes:
        taps: where statistics are taken.
        sizes: columns that belong to each of them; they sum to N.
        mean: of all images in row 0, of class c in row 1 + c, [1 + num_classes, N].
        var: the same, biased.
    """

    taps: Sequence[Tap]
    sizes: Sequence[int]
    mean: Tensor
    var: Tensor


@torch.no_grad()
def layer_statistics(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    dtype: torch.dtype = torch.float32,
) -> LayerStatistics:
    """Measure what a network sees of real data; one pass.

    Row 0 of a BatchNorm layer is its running statistics, which took views and all epochs in.

    Args:
        model: in eval mode.
        batches: normalised images [B, C, H, W] and labels [B]; at least one batch.
        num_classes: the row of a class without images holds zeros.
        dtype: of the convolutions; over many images the rounding of activations averages out.
    """
    places = taps(model)
    device = next(model.parameters()).device
    zeros = [torch.zeros(1, device=device)] * len(places)
    count = torch.zeros(1 + num_classes, 1, device=device)
    sums: Tensor | None = None
    sizes: list[int] = []
    for images, labels in batches:
        with autocast(device, dtype):
            _, found = observe(model, images, places, zeros)
        sizes = [first.shape[1] for first, _ in found]
        both = torch.stack([torch.cat(parts, 1) for parts in zip(*found, strict=True)])
        member = torch.nn.functional.one_hot(labels, num_classes).to(both).T
        member = torch.cat([torch.ones_like(member[:1]), member])
        count += member.sum(1, keepdim=True)
        sums = member @ both if sums is None else sums + member @ both
    assert sums is not None, "no real images"
    mean, second = sums / count.clamp(min=1)
    var = second - mean.square()
    for tap, own_mean, own_var in zip(
        places, mean[0].split(sizes), var[0].split(sizes), strict=True
    ):
        if isinstance(tap.layer, nn.BatchNorm2d):
            assert tap.layer.running_mean is not None
            assert tap.layer.running_var is not None
            own_mean.copy_(tap.layer.running_mean)
            own_var.copy_(tap.layer.running_var)
    return LayerStatistics(places, sizes, mean, var)


class LayerMatching:
    """Distance of synthetic images from real data in the eyes of one network.

    Keeps the moving average of the statistics over all iterations and batches. A class, and a
    layer that was left out so far, starts it with its first value.

    Args:
        model: in eval mode, without gradients.
        real: what it sees of real data.
        alpha: weight of the whole batch; the rest is that of the classes in it (EDC).
        first_weight: factor of the first layer.
        momentum: share of the past in the moving average; 0: none is taken.
        drop: probability that a convolution is left out of one iteration.
        stream: draws which.
    """

    def __init__(
        self,
        model: nn.Module,
        real: LayerStatistics,
        *,
        alpha: float = 1.0,
        first_weight: float = 1.0,
        momentum: float = 0.0,
        drop: float = 0.0,
        stream: torch.Generator,
    ) -> None:
        device, sizes = real.mean.device, list(real.sizes)
        self._model = model
        self._taps = real.taps
        self._alpha = alpha
        self._momentum = momentum
        self._drop = drop
        self._stream = stream
        # A channel's moments are taken around its own mean, those of patches around one for all.
        self._centres = [
            mean.mean(0, keepdim=True) if tap.patches else mean
            for tap, mean in zip(real.taps, real.mean[0].split(sizes), strict=True)
        ]
        centre = torch.cat(
            [one.expand(size) for one, size in zip(self._centres, sizes, strict=True)]
        )
        self._wanted = torch.stack([real.mean - centre, real.var])
        self._average = torch.full_like(self._wanted, math.nan)
        self._columns = torch.arange(sum(sizes), device=device).split(sizes)
        self._tap_of_column = torch.block_diag(
            *(torch.ones(size, 1, device=device) for size in sizes)
        )
        numbers: dict[nn.Module, int] = {}
        for tap in real.taps:
            if isinstance(tap.layer, nn.Conv2d):
                numbers.setdefault(tap.layer, len(numbers))
        self._convolution = [numbers.get(tap.layer) for tap in real.taps]
        first = [tap.layer is real.taps[0].layer for tap in real.taps]
        self._weights = torch.where(torch.tensor(first, device=device), first_weight, 1.0)

    def start(self, labels: Tensor) -> None:
        """Turn to a batch of images of these classes, int64 [B]."""
        self._groups = whole_batch(len(labels), labels.device)
        self._rows = torch.zeros(1, 1, dtype=torch.int64, device=labels.device)
        self._shares = torch.ones(1, device=labels.device)
        if self._alpha < 1:
            classes, groups = by_class(labels)
            share = (groups > 0).float().mean(1)
            self._groups = torch.cat([self._groups, groups])
            self._rows = torch.cat([self._rows, 1 + classes[:, None]])
            self._shares = torch.cat([self._alpha * self._shares, (1 - self._alpha) * share])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Show a batch to the network.

        Args:
            images: as they are shown, [B, C, H, W].

        Returns:
            Logits [B, num_classes], and the distance, a scalar.
        """
        kept = self._draw()
        logits, found = observe(
            self._model, images, [self._taps[n] for n in kept], [self._centres[n] for n in kept]
        )
        if not kept:
            return logits, logits.new_zeros(())
        first, second = (self._groups @ torch.cat(parts, 1) for parts in zip(*found, strict=True))
        columns = torch.cat([self._columns[n] for n in kept])
        now = torch.stack([first, second - first.square()])
        apart = self._smooth(now, columns) - self._wanted[:, self._rows, columns]
        squares = apart.square() @ self._tap_of_column[columns]
        norms = squares.clamp(min=_SMALLEST).sqrt().sum(0)
        return logits, self._shares @ norms[:, kept] @ self._weights[kept]

    def _draw(self) -> list[int]:
        """Choose the taps of one iteration; those of one convolution stay or go together."""
        count = len(set(self._convolution) - {None})
        dropped = (torch.rand(count, generator=self._stream) < self._drop).tolist()
        return [tap for tap, own in enumerate(self._convolution) if own is None or not dropped[own]]

    def _smooth(self, now: Tensor, columns: Tensor) -> Tensor:
        """Return the moving average, with the gradient of the current value alone."""
        current = now.detach()
        past = self._average[:, self._rows, columns]
        average = torch.where(past.isnan(), current, current.lerp(past, self._momentum))
        self._average[:, self._rows, columns] = average
        return average + (now - current)
