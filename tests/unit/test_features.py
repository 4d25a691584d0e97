"""Penultimate features: of any network, in chunks, and differentiable."""

import pytest
import torch
from fakes import CONVNET, tiny_images, tiny_spec
from torch import nn

from fedistill.config import ModelConfig
from fedistill.errors import ModelError
from fedistill.models import build
from fedistill.models.features import classifier_of, features_of, penultimate

SPEC = tiny_spec(channels=3)
IMAGES = tiny_images(3, SPEC).images


def without_classifier(model: nn.Module, name: str) -> nn.Module:
    setattr(model, name, nn.Identity())
    return model


@pytest.mark.parametrize(
    ("config", "name", "width"),
    [
        (CONVNET, "classifier", 8 * 2 * 2),
        (ModelConfig(name="resnet18"), "fc", 512),
        (ModelConfig(name="mobilenet_v2"), "classifier", 1280),
    ],
    ids=lambda it: it.name if isinstance(it, ModelConfig) else "",
)
def test_features_are_what_the_classifier_is_given(config: ModelConfig, name: str, width: int):
    model = build(config, SPEC, 0)
    images = IMAGES.repeat(20, 1, 1, 1)  # more than are shown at once
    found = features_of(model, images, SPEC, torch.float32)
    assert found.shape == (len(images), width)
    assert not found.requires_grad
    assert not model.training
    with torch.no_grad():
        expected = without_classifier(model, name)(SPEC.normalise(images))
    torch.testing.assert_close(found, expected)


def test_no_hook_is_left_and_the_classifier_is_the_last_linear_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 3))
    assert classifier_of(model) is model[3]
    found = features_of(model, IMAGES, SPEC, torch.float32)
    assert torch.equal(found, model[:3](SPEC.normalise(IMAGES)))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_have_a_gradient_to_the_pixels():
    model = build(CONVNET, SPEC, 0).eval()
    images = SPEC.normalise(IMAGES[:2]).requires_grad_()
    (gradient,) = torch.autograd.grad(penultimate(model, images).square().sum(), images)
    assert gradient.abs().sum() > 0


def test_bfloat16_convolutions_give_float32_features():
    model = build(CONVNET, SPEC, 0)
    found = features_of(model, IMAGES, SPEC, torch.bfloat16)
    assert found.dtype == torch.float32
    exact = features_of(model, IMAGES, SPEC, torch.float32)
    assert 0 < (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(ModelError, match="no linear layer"):
        features_of(nn.Sequential(nn.Conv2d(3, 3, 1)), IMAGES, SPEC, torch.float32)
