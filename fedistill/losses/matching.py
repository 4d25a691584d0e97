"""Distances between what real and synthetic images do to a network: gradients and features.

A *signature* is what a network makes of the images of one class: the gradient of their mean
cross-entropy with respect to each convolution's weights, and, where wanted, their mean
penultimate features. Gradient matching (Zhao et al., "Dataset Condensation with Gradient
Matching", ICLR 2021) makes the signatures of real and synthetic images alike; IDC (Kim et al.,
ICML 2022) and DREAM (Liu et al., ICCV 2023) leave biases, normalisation and the classifier out.

Every entry of a signature is a mean over images, so that of many images is the sum of those of
its parts, each weighted by its share: `matching_gradients` needs the memory of one piece alone.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill.models.features import classifier_of

Metric = Literal["mse", "l1", "cosine", "relative"]

_LEAST = 1e-12  # of a squared norm that something is divided by


def gradient_distance(found: Sequence[Tensor], wanted: Sequence[Tensor], metric: Metric) -> Tensor:
    """Compare two lists of gradients, tensor by tensor.

    Args:
        found: of synthetic images; the result is differentiable in them.
        wanted: of real images, of the same shapes.
        metric: `mse` sums the squares of all differences (IDC, DREAM), `l1` their sizes;
            `cosine` sums 1 - cos over the output channels of every tensor (DC, Eq. 8-9);
            `relative` is `mse` in units of the squared norm of all of `wanted`, so that its
            gradient does not fade as a network learns (MIBDC, Eq. 3.3, whose unit is 0 at first).

    Returns:
        Scalar.
    """
    pairs = list(zip(found, wanted, strict=True))
    if metric == "l1":
        return torch.stack([(own - real).abs().sum() for own, real in pairs]).sum()
    if metric == "cosine":
        rows = [(own.flatten(1), real.flatten(1)) for own, real in pairs]
        return torch.stack([(1 - F.cosine_similarity(own, real)).sum() for own, real in rows]).sum()
    squares = torch.stack([(own - real).square().sum() for own, real in pairs]).sum()
    if metric == "mse":
        return squares
    size = torch.stack([real.square().sum() for real in wanted]).sum()
    return squares / size.clamp(min=_LEAST)


def feature_distance(found: Tensor, wanted: Tensor, metric: Metric) -> Tensor:
    """Squared distance of mean features [D] (DREAM+; DM).

    With `relative` it is in units of the squared norm of `wanted`, as that of gradients is (MIBDC,
    Eq. 3.13); the other metrics are of gradients alone.
    """
    squares = (found - wanted).square().sum()
    return squares / wanted.square().sum().clamp(min=_LEAST) if metric == "relative" else squares


def matched_weights(network: nn.Module) -> list[Tensor]:
    """Return the weights whose gradients are matched: those of the convolutions."""
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]


def signature(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    share: float = 1.0,
    features: bool = False,
    differentiable: bool = False,
) -> list[Tensor]:
    """Return the gradients of the mean cross-entropy, and the mean features if asked for.

    Args:
        network: with gradients for its weights.
        images: what it is given, [B, C, H, W].
        targets: classes int64 [B], or probabilities [B, num_classes].
        share: of all images that these are: every entry is multiplied by it.
        features: whether the mean penultimate features [D] come last.
        differentiable: keep the graph that leads back to the images.

    Returns:
        One tensor for each of `matched_weights`, then the features.
    """
    caught: list[Tensor] = []
    hook = classifier_of(network).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        logits = network(images.contiguous(memory_format=torch.channels_last))
    finally:
        hook.remove()
    loss = share * F.cross_entropy(logits, targets)
    gradients = torch.autograd.grad(loss, matched_weights(network), create_graph=differentiable)
    found = [*gradients, share * caught[-1].mean(0)] if features else [*gradients]
    return found if differentiable else [entry.detach() for entry in found]


def signature_distance(
    found: Sequence[Tensor], wanted: Sequence[Tensor], metric: Metric, feature_weight: float
) -> Tensor:
    """Compare two signatures: gradients, and features where `feature_weight` is above 0."""
    if feature_weight == 0:
        return gradient_distance(found, wanted, metric)
    gradients = gradient_distance(found[:-1], wanted[:-1], metric)
    return gradients + feature_weight * feature_distance(found[-1], wanted[-1], metric)


def matching_gradient(
    network: nn.Module,
    views: Tensor,
    targets: Tensor,
    distance: Callable[[Sequence[Tensor]], Tensor],
    *,
    features: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return how a distance of the views' signature changes with the views.

    Args:
        network: with gradients for its weights.
        views: what it is given, [B, C, H, W].
        targets: classes int64 [B], or probabilities [B, num_classes].
        distance: of a signature from another; a scalar.
        features: whether a signature holds features.
        chunk: most views that have a graph at once.

    Returns:
        The gradient [B, C, H, W], and the distance.
    """

    def alone(found: Sequence[Sequence[Tensor]]) -> Tensor:
        return distance(found[0])

    parts = [(views, targets)]
    (gradient,), loss = matching_gradients(network, parts, alone, features=features, chunk=chunk)
    return gradient, loss


def matching_gradients(
    network: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    distance: Callable[[Sequence[Sequence[Tensor]]], Tensor],
    *,
    features: bool,
    chunk: int,
) -> tuple[list[Tensor], Tensor]:
    """Return how a distance of the signatures of several batches changes with their views.

    With more than `chunk` views in all, signatures are computed piece by piece without a graph;
    the derivative of the distance by each signature then weights the signatures of its pieces,
    each with a graph of its own. By the chain rule the result is the same, for one more forward
    and backward pass.

    Args:
        network: with gradients for its weights.
        parts: batches of views [B, C, H, W] with their targets, int64 [B] or [B, num_classes].
        distance: of the signatures of all parts from something; a scalar.
        features: whether a signature holds features.
        chunk: most views that have a graph at once.

    Returns:
        The gradient of each part, [B, C, H, W], and the distance.
    """
    leaves = [views.detach() for views, _ in parts]

    def of(number: int, views: Tensor, targets: Tensor, differentiable: bool) -> list[Tensor]:
        return signature(
            network,
            views,
            targets,
            share=len(views) / len(leaves[number]),
            features=features,
            differentiable=differentiable,
        )

    if sum(map(len, leaves)) <= chunk:
        for leaf in leaves:
            leaf.requires_grad_()
        loss = distance(
            [of(n, leaf, parts[n][1], differentiable=True) for n, leaf in enumerate(leaves)]
        )
        return list(torch.autograd.grad(loss, leaves)), loss.detach()

    pieces = [
        list(zip(leaf.split(chunk), targets.split(chunk), strict=True))
        for leaf, (_, targets) in zip(leaves, parts, strict=True)
    ]
    whole = []
    for number, own in enumerate(pieces):
        found = [of(number, *piece, differentiable=False) for piece in own]
        sums = [torch.stack(entries).sum(0) for entries in zip(*found, strict=True)]
        whole.append([total.requires_grad_() for total in sums])
    loss = distance(whole)
    slopes = iter(torch.autograd.grad(loss, [entry for entries in whole for entry in entries]))
    gradients = []
    for number, own in enumerate(pieces):
        weights = [next(slopes) for _ in whole[number]]
        gradients.append(torch.cat([_weighted(of, number, piece, weights) for piece in own]))
    return gradients, loss.detach()


def _weighted(
    of: Callable[[int, Tensor, Tensor, bool], list[Tensor]],
    number: int,
    piece: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
) -> Tensor:
    """Return the gradient of a weighted signature by the views of a piece."""
    views, targets = piece
    views.requires_grad_()
    found = of(number, views, targets, True)
    total = torch.stack([(w * f).sum() for w, f in zip(weights, found, strict=True)]).sum()
    return torch.autograd.grad(total, views)[0]
