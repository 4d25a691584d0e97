"""Make a network from its config: ConvNet, small-image ResNets, or any torchvision classifier."""

import inspect

import torch
from torch import nn

from fedistill.config import ModelConfig
from fedistill.errors import ModelError, known_names
from fedistill.images import DataSpec
from fedistill.models.convnet import WIDTH, ConvNet, default_depth
from fedistill.seeding import global_seed

_SMALL_IMAGE = 64  # up to this size a ResNet keeps its resolution in the stem (SRe2L, EDC, RDED)


def build(config: ModelConfig, spec: DataSpec, seed: int, *path: str | int) -> nn.Module:
    """Make a freshly initialised network for a data set.

    Args:
        config: which network.
        spec: channels, size and classes of the data.
        seed: with `path`, decides the initial weights.
        *path: stage and ids, as for `seeding.generator`.

    Raises:
        ModelError: no such network, or the images are too small for it.
    """
    with global_seed(seed, *path):
        model = _convnet(config, spec) if config.name == "convnet" else _torchvision(config, spec)
    return model.to(memory_format=torch.channels_last)


def names() -> list[str]:
    """List the networks that a config can name."""
    import torchvision

    return ["convnet", *torchvision.models.list_models(module=torchvision.models)]


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorm layers of a network, from the image to the classifier."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def require_batch_norm(model: nn.Module, config: ModelConfig, method: str) -> None:
    """Refuse a network without BatchNorm for a method that matches BatchNorm statistics.

    Raises:
        ModelError: the network has no BatchNorm2d layer.
    """
    if not batch_norms(model):
        raise ModelError(
            f"{method} matches BatchNorm statistics, and model '{config.name}' "
            f"(norm: {config.norm}) has no BatchNorm layer; use model.norm: batch for convnet, "
            "or a network with BatchNorm such as resnet18"
        )


def _convnet(config: ModelConfig, spec: DataSpec) -> nn.Module:
    depth = config.depth or default_depth(spec.size)
    padded = 32 if spec.size == 28 else spec.size
    if padded >> depth < 1:
        raise ModelError(
            f"model.depth is {depth}: {spec.size}-pixel images vanish after "
            f"{padded.bit_length() - 1} poolings; accepted: 1 to {padded.bit_length() - 1}"
        )
    return ConvNet(
        spec.channels,
        spec.size,
        spec.num_classes,
        depth=depth,
        width=config.width or WIDTH,
        norm=config.norm or "batch",
    )


def _torchvision(config: ModelConfig, spec: DataSpec) -> nn.Module:
    import torchvision

    if config.name not in names():
        raise ModelError(
            f"model '{config.name}' does not exist; {known_names(config.name, names())}"
        )
    builder = torchvision.models.get_model_builder(config.name)
    options = {"weights": None, "num_classes": spec.num_classes}
    if "aux_logits" in inspect.signature(builder).parameters or config.name in (
        "googlenet",
        "inception_v3",
    ):
        options |= {"aux_logits": False, "init_weights": True}
    if config.name.startswith("vit_"):
        options["image_size"] = spec.size
    try:
        model = builder(**options)
        if isinstance(model, torchvision.models.ResNet) and spec.size <= _SMALL_IMAGE:
            model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        if spec.channels != 3:
            _change_first_convolution(model, spec.channels)
        with torch.no_grad():
            model.eval()(torch.zeros(1, spec.channels, spec.size, spec.size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"model '{config.name}' does not take {spec.channels} x {spec.size} x {spec.size} "
            f"images: {error}; use another model, or larger images (data.size)"
        ) from error
    model.train()
    assert isinstance(model, nn.Module)
    return model


def _change_first_convolution(model: nn.Module, channels: int) -> None:
    """Let a network made for RGB take images with another number of channels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            parent = model.get_submodule(name.rpartition(".")[0])
            first = nn.Conv2d(
                channels,
                module.out_channels,
                kernel_size=module.kernel_size,  # type: ignore[arg-type]
                stride=module.stride,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            setattr(parent, name.rpartition(".")[2], first)
            return
