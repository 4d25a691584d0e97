"""Networks: they fit the images they are made for, or one message says why not."""

import pytest
import torch
from fakes import tiny_spec
from torch import nn

from fedistill.config import ModelConfig
from fedistill.errors import ModelError
from fedistill.images import DataSpec
from fedistill.models import build
from fedistill.models.build import batch_norms, names, require_batch_norm
from fedistill.models.convnet import default_depth
from fedistill.models.instance_norm import InstanceNorm


def answers(model: nn.Module, spec: DataSpec) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.zeros(2, spec.channels, spec.size, spec.size))


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (224, 6)])
def test_the_depth_of_a_convnet_follows_the_size(size: int, depth: int):
    assert default_depth(size) == depth
    spec = tiny_spec(size=size)
    model = build(ModelConfig(width=4), spec, 0)
    assert len(batch_norms(model)) == depth
    assert answers(model, spec).shape == (2, 3)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_convnet_has_the_norm_that_was_asked_for(norm: str, channels: int):
    spec = tiny_spec(channels=channels, size=32, num_classes=5)
    model = build(ModelConfig(width=4, norm=norm), spec, 0)  # type: ignore[arg-type]
    kinds = [type(layer) for layer in model.modules() if "Norm" in type(layer).__name__]
    assert kinds == [nn.BatchNorm2d if norm == "batch" else InstanceNorm] * 3
    assert answers(model, spec).shape == (2, 5)


def test_instance_norm_takes_each_channel_of_each_image_alone():
    spec = tiny_spec(size=32)
    model = build(ModelConfig(width=4, norm="instance"), spec, 0)
    image = torch.rand(1, 1, 32, 32)
    alone = model(image)
    with_others = model(torch.cat([image, 100 * torch.rand(3, 1, 32, 32)]))[:1]
    torch.testing.assert_close(alone, with_others, rtol=1e-4, atol=1e-5)


def test_a_convnet_for_28_pixels_is_the_one_for_32():
    shapes = [
        [tuple(p.shape) for p in build(ModelConfig(), tiny_spec(size=size), 0).parameters()]
        for size in (28, 32)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0][-2] == (3, 128 * 4 * 4)


def test_a_convnet_that_is_too_deep_is_refused():
    with pytest.raises(ModelError, match=r"depth is 4: 8-pixel images vanish.*accepted: 1 to 3"):
        build(ModelConfig(depth=4), tiny_spec(), 0)
    deepest = build(ModelConfig(depth=3, width=4), tiny_spec(), 0)
    assert answers(deepest, tiny_spec()).shape == (2, 3)


def map_sizes(model: nn.Module, spec: DataSpec) -> list[int]:
    """Sizes of the feature maps on the way to the classifier, each once."""
    seen: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, args, maps: seen.append(maps.shape[-1]))
    answers(model, spec)
    return sorted({size for size in seen if size > 1}, reverse=True)


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize(
    ("name", "halvings"),
    [
        ("resnet18", 3),  # 4 x 4 at the end, as in the CIFAR code of SRe2L and RDED
        ("shufflenet_v2_x0_5", 3),
        ("wide_resnet16_2", 2),
        ("mobilenet_v2", 4),
        ("mobilenet_v2_half", 4),
        ("efficientnet_b0", 4),
    ],
)
def test_a_network_keeps_the_resolution_of_small_images(name: str, halvings: int, size: int):
    spec = tiny_spec(channels=3, size=size, num_classes=7)
    model = build(ModelConfig(name=name), spec, 0)
    assert answers(model, spec).shape == (2, 7)
    assert map_sizes(model, spec) == [-(-size // 2**halving) for halving in range(halvings + 1)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_network_for_larger_images_is_as_torchvision_made_it(name: str):
    spec = tiny_spec(channels=3, size=65)
    model = build(ModelConfig(name=name), spec, 0)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.stride == (2, 2)
    assert map_sizes(model, spec)[0] == 33


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_resnet_has_the_layers_of_the_literature(channels: int):
    spec = tiny_spec(channels=channels, size=32, num_classes=7)
    model = build(ModelConfig(name="resnet18"), spec, 0)
    assert model.conv1.weight.shape == (64, channels, 3, 3)  # type: ignore[union-attr]
    assert isinstance(model.maxpool, nn.Identity)
    assert len(batch_norms(model)) == 20


def parameters_of(name: str) -> int:
    model = build(ModelConfig(name=name), tiny_spec(channels=3, size=32, num_classes=10), 0)
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_wide_resnet_has_as_many_weights_as_its_paper_says():
    def group(inputs: int, width: int) -> int:
        first = 2 * inputs + 9 * inputs * width + 2 * width + 9 * width**2 + inputs * width
        return first + 2 * (2 * width + 9 * width**2)

    head = 2 * 128 + 128 * 10 + 10
    assert (
        parameters_of("wide_resnet16_2")
        == 27 * 16 + group(16, 32) + group(32, 64) + group(64, 128) + head
    )
    assert round(parameters_of("wide_resnet16_2") / 1e6, 1) == 0.7


def test_the_halved_mobilenet_is_the_smaller_one():
    assert parameters_of("mobilenet_v2_half") < 0.4 * parameters_of("mobilenet_v2")


@pytest.mark.parametrize("name", ["mobilenet_v2", "wide_resnet16_2", "shufflenet_v2_x0_5"])
def test_networks_take_grey_images(name: str):
    spec = tiny_spec(channels=1, size=32)
    model = build(ModelConfig(name=name), spec, 0)
    assert answers(model, spec).shape == (2, 3)
    assert model.training is False
    assert build(ModelConfig(name=name), spec, 0).training is True


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        build(ModelConfig(name="resnet_18"), tiny_spec(size=32), 0)
    assert {"convnet", "resnet18", "mobilenet_v2", "wide_resnet16_2"} <= set(names())


def test_images_too_small_for_a_network_are_refused():
    with pytest.raises(ModelError, match=r"'alexnet' does not take 1 x 8 x 8 images"):
        build(ModelConfig(name="alexnet"), tiny_spec(), 0)


def test_a_method_that_needs_batch_norm_says_so():
    config = ModelConfig(norm="instance", width=4)
    with pytest.raises(ModelError, match=r"sre2l matches BatchNorm.*use model\.norm: batch"):
        require_batch_norm(build(config, tiny_spec(), 0), config, "sre2l")
    config = ModelConfig(width=4)
    require_batch_norm(build(config, tiny_spec(), 0), config, "sre2l")


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_the_seed_and_the_path_decide_the_weights(name: str):
    spec = tiny_spec(channels=3, size=32)
    config = ModelConfig(name=name)

    def weights(seed: int, *path: str | int) -> torch.Tensor:
        return torch.cat([p.flatten() for p in build(config, spec, seed, *path).parameters()])

    base = weights(1, "squeeze", 0)
    assert torch.equal(weights(1, "squeeze", 0), base)
    for other in ((2, "squeeze", 0), (1, "squeeze", 1), (1, "student", 0)):
        assert not torch.equal(weights(*other), base)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build(ModelConfig(width=4), tiny_spec(), 3)
    assert torch.equal(torch.rand(3), expected)


def test_batch_norms_come_in_order_of_depth():
    model = build(ModelConfig(width=4, depth=3), tiny_spec(), 0)
    order: list[nn.BatchNorm2d] = []
    for layer in batch_norms(model):
        layer.register_forward_pre_hook(lambda layer, _: order.append(layer))
    answers(model, tiny_spec())
    assert order == batch_norms(model)
