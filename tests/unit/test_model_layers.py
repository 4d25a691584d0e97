"""Layers are found by name; a wrong name is answered with the right ones."""

import pytest
import torch
from fakes import CONVNET, tiny_spec

from fedistill.config import ModelConfig
from fedistill.errors import ModelError
from fedistill.models import build, layers

SPEC = tiny_spec(channels=3, size=32)
RESNET = ModelConfig(name="resnet18")


@pytest.mark.parametrize(("config", "last"), [(CONVNET, "features"), (RESNET, "layer4")])
def test_the_last_map_is_that_before_the_classifier(config: ModelConfig, last: str):
    model = build(config, SPEC, 0)
    assert layers.resolve(model, layers.LAST, 3, 32) == last
    assert model.training


def test_what_a_layer_puts_out_is_what_the_network_computes_there():
    model = build(CONVNET, SPEC, 0).eval()
    images = torch.randn(2, 3, 32, 32)
    found = layers.output_of(model, "features.2", images)
    assert torch.equal(found, model.features[:3](images))  # type: ignore[operator, index]
    assert torch.equal(layers.output_of(model, layers.LOGITS, images), model(images))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["layer5", "classifier", ""])
def test_a_layer_that_is_none_is_refused_with_those_there_are(name: str):
    with pytest.raises(ModelError, match=r"known: .*features\.3.*last.*logits"):
        layers.resolve(build(CONVNET, SPEC, 0), name, 3, 32)
