"""Penultimate features: what the last linear layer of a network is given."""

import torch
from torch import Tensor, nn

from fedistill.errors import ModelError
from fedistill.images import DataSpec
from fedistill.training import autocast, forward_batch


def classifier_of(model: nn.Module) -> nn.Linear:
    """Return the last linear layer of a network.

    Raises:
        ModelError: it has none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(
            f"{type(model).__name__} has no linear layer, so it has no penultimate features; use "
            "a network that ends in one, such as convnet or resnet18"
        )
    return linear[-1]


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """Return the penultimate features of images, [B, D]; differentiable.

    Args:
        model: in the mode that it is wanted in.
        images: normalised, [B, C, H, W].

    Raises:
        ModelError: the network has no linear layer.
    """
    caught: list[Tensor] = []
    hook = classifier_of(model).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        model(images.contiguous(memory_format=torch.channels_last))
    finally:
        hook.remove()
    return caught[-1]


@torch.no_grad()
def features_in_parts(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Return the penultimate features of normalised images, float32 [M, D].

    Args:
        model: in the mode that it is wanted in.
        images: [M, C, H, W], on any device.
        batch_size: images in one forward pass.

    Raises:
        ModelError: the network has no linear layer.
    """
    device = next(model.parameters()).device
    parts = [penultimate(model, part.to(device)) for part in images.split(batch_size)]
    return torch.cat(parts).float()


@torch.no_grad()
def features_of(model: nn.Module, images: Tensor, spec: DataSpec, dtype: torch.dtype) -> Tensor:
    """Return the penultimate features of uint8 images in eval mode, float32 [M, D].

    Args:
        model: where to look.
        images: uint8 [M, C, H, W].
        spec: of the data set.
        dtype: of the convolutions.

    Raises:
        ModelError: the network has no linear layer.
    """
    device = next(model.parameters()).device
    model.eval()
    parts = []
    for batch in images.split(forward_batch(device)):
        with autocast(device, dtype):
            parts.append(penultimate(model, spec.normalise(batch.to(device))).float())
    return torch.cat(parts)
