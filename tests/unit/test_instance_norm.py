"""Our instance norm is PyTorch's GroupNorm, derivatives of derivatives included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill.models.convnet import ConvNet
from fedistill.models.instance_norm import InstanceNorm


@pytest.fixture
def pair() -> tuple[InstanceNorm, nn.GroupNorm]:
    torch.manual_seed(0)
    own, theirs = InstanceNorm(3).double(), nn.GroupNorm(3, 3).double()
    nn.init.uniform_(own.weight, 0.5, 2)
    nn.init.normal_(own.bias)
    theirs.load_state_dict(own.state_dict())
    return own, theirs


def test_derivatives_of_both_orders_are_those_of_finite_differences(
    pair: tuple[InstanceNorm, nn.GroupNorm],
):
    own, _ = pair
    own.requires_grad_(False)
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(own, maps)
    assert torch.autograd.gradgradcheck(own, maps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_of_gradients_is_that_of_group_norm(
    pair: tuple[InstanceNorm, nn.GroupNorm], dtype: torch.dtype
):
    """As gradient matching takes it: of a kernel before the norm, by the images."""
    images = torch.randn(4, 2, 8, 8, dtype=dtype)
    first, second = torch.randn(3, 2, 3, 3, dtype=dtype), torch.randn(5, 3, 3, 3, dtype=dtype)

    def by_images(norm: nn.Module) -> Tensor:
        own, kernel = images.clone().requires_grad_(), first.clone().requires_grad_()
        loss = F.conv2d(norm(F.conv2d(own, kernel)).relu(), second).square().mean()
        (gradient,) = torch.autograd.grad(loss, kernel, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), own)[0]

    ours, theirs = (by_images(norm.to(dtype)) for norm in pair)
    largest = theirs.abs().max().item()
    assert largest > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)


def test_it_trains_like_group_norm(pair: tuple[InstanceNorm, nn.GroupNorm]):
    maps = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    gradients = []
    for norm in pair:
        norm(maps).square().sum().add(norm(maps).sum()).backward()
        gradients.append([norm.weight.grad, norm.bias.grad])
    torch.testing.assert_close(*gradients)


def test_maps_with_the_channels_last_are_normalised_alike(pair: tuple[InstanceNorm, nn.GroupNorm]):
    own, theirs = pair
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    turned = maps.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(own(turned), theirs(maps))


def test_bfloat16_maps_pass(pair: tuple[InstanceNorm, nn.GroupNorm]):
    own = pair[0].float()
    maps = torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = own(maps.bfloat16())
    torch.testing.assert_close(found.float(), own(maps), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("size", [8, 12, 28])
def test_a_convnet_with_instance_norm_pools_like_avg_pool(size: int):
    torch.manual_seed(0)
    model = ConvNet(1, size, 3, width=4, norm="instance")
    images = torch.randn(2, 1, size, size)
    expected = images
    for layer in model.features:
        pools = type(layer).__name__ == "_Halve"
        expected = F.avg_pool2d(expected, 2) if pools else layer(expected)
    torch.testing.assert_close(model(images), model.classifier(expected.flatten(1)))
