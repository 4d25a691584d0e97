"""Make a network from its config: ConvNet, Wide ResNet, or any torchvision classifier.

Networks made for 224 pixels shrink an image in their first layers: of 32 pixels one would be left
halfway through. For small images a table says which networks keep the resolution there.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedistill.config import ModelConfig
from fedistill.errors import ModelError, known_names
from fedistill.images import DataSpec
from fedistill.models.convnet import WIDTH, ConvNet, default_depth
from fedistill.models.wide_resnet import WideResNet
from fedistill.seeding import global_seed

_SMALL_IMAGE = 64  # pixels: CIFAR and Tiny-ImageNet, as in SRe2L, RDED, G-VBSM and EDC

# Classes of torchvision whose first convolution is made 3x3 with stride 1 for small images, and the
# pooling after it that is taken out.
_SMALL_STEMS: Mapping[str, str | None] = {
    "ResNet": "maxpool",
    "ShuffleNetV2": "maxpool",
    "MobileNetV2": None,
    "EfficientNet": None,
}

# Names of ours for networks of torchvision with other options.
_VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mobilenet_v2_half": ("mobilenet_v2", {"width_mult": 0.5}),  # a backbone of G-VBSM and EDC
}


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
        model = _OWN.get(config.name, _torchvision)(config, spec)
    layout: torch.memory_format = getattr(model, "layout", torch.channels_last)
    return model.to(memory_format=layout)


def require_network(config: ModelConfig, spec: DataSpec, key: str) -> None:
    """Refuse a network of a method's own that cannot be made for a data set.

    Args:
        config: which network.
        spec: of the data.
        key: of the user's config, and what the network is for: the error begins with it.

    Raises:
        ModelError: with what is accepted.
    """
    try:
        build(config, spec, 0, "check")
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from error


def names() -> list[str]:
    """List the networks that a config can name."""
    import torchvision

    return [*_OWN, *_VARIANTS, *torchvision.models.list_models(module=torchvision.models)]


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


def _wide_resnet(config: ModelConfig, spec: DataSpec) -> nn.Module:
    return WideResNet(spec.channels, spec.num_classes)


_OWN = {"convnet": _convnet, "wide_resnet16_2": _wide_resnet}


def _torchvision(config: ModelConfig, spec: DataSpec) -> nn.Module:
    import torchvision

    if config.name not in names():
        raise ModelError(
            f"model '{config.name}' does not exist; {known_names(config.name, names())}"
        )
    name, changes = _VARIANTS.get(config.name, (config.name, {}))
    builder = torchvision.models.get_model_builder(name)
    options = {"weights": None, "num_classes": spec.num_classes, **changes}
    if "aux_logits" in inspect.signature(builder).parameters or name in (
        "googlenet",
        "inception_v3",
    ):
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = spec.size
    try:
        model = builder(**options)
        _fit_stem(model, spec)
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


def _fit_stem(model: nn.Module, spec: DataSpec) -> None:
    """Let a network made for large RGB images take other channels, and small images whole."""
    small = spec.size <= _SMALL_IMAGE and type(model).__name__ in _SMALL_STEMS
    if not small and spec.channels == 3:
        return
    name, old = next(it for it in model.named_modules() if isinstance(it[1], nn.Conv2d))
    assert isinstance(old, nn.Conv2d)
    shape: dict[str, Any] = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding")}
    if small:
        shape = {"kernel_size": 3, "stride": 1, "padding": 1}
        pooling = _SMALL_STEMS[type(model).__name__]
        if pooling is not None:
            model.set_submodule(pooling, nn.Identity())
    bias = old.bias is not None
    model.set_submodule(name, nn.Conv2d(spec.channels, old.out_channels, bias=bias, **shape))
