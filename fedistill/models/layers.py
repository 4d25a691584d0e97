"""Name a layer of a network, and catch what it puts out."""

import torch
from torch import Tensor, nn

from fedistill.errors import ModelError, known_names

LAST, LOGITS = "last", "logits"


@torch.no_grad()
def maps(model: nn.Module, channels: int, size: int) -> list[str]:
    """List the layers that put out feature maps wider than a pixel, from image to classifier.

    Args:
        model: in any mode; it is run once on a black image in eval mode.
        channels: of the image.
        size: of the image in pixels.
    """
    found: dict[str, int] = {}

    def note(name: str, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and out.shape[-1] > 1:
            found.pop(name, None)  # a layer used twice stands where it is used last
            found[name] = out.shape[-1]

    hooks = [
        module.register_forward_hook(lambda _, args, out, name=name: note(name, out))
        for name, module in model.named_modules()
        if name
    ]
    mode = model.training
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(1, channels, size, size, device=parameter.device))
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return list(found)


def resolve(model: nn.Module, name: str, channels: int, size: int) -> str:
    """Return the name of a layer: of a module, or LOGITS for the network's own output.

    Args:
        model: where to look.
        name: of a module, LOGITS, or LAST for the last feature map before the classifier.
        channels: of the image.
        size: of the image in pixels.

    Raises:
        ModelError: there is no such layer.
    """
    known = maps(model, channels, size)
    if name == LOGITS or name in known:
        return name
    if name == LAST and known:
        return known[-1]
    names = [LAST, LOGITS, *(layer for layer in known if layer.count(".") <= 1)]
    raise ModelError(
        f"layer '{name}' puts out no feature map in {type(model).__name__}; "
        f"{known_names(name, names)}"
    )


def output_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return what a layer puts out for images; differentiable.

    Args:
        model: where the layer is.
        name: as `resolve` returned it.
        images: normalised, [B, C, H, W].
    """
    caught: list[Tensor] = []
    module = model if name == LOGITS else model.get_submodule(name)
    hook = module.register_forward_hook(lambda _, args, out: caught.append(out))
    try:
        model(images.contiguous(memory_format=torch.channels_last))
    finally:
        hook.remove()
    return caught[-1]
