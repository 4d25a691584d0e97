"""What every extra loss term promises; a new file in `losses/` is tested without being listed."""

import pytest
import torch

from fedistill import registry

STREAM = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 3, 8, 8, generator=STREAM)
LABELS = torch.tensor([0, 1, 1, 2])


@pytest.mark.parametrize("name", registry.names("losses"))
def test_a_term_is_a_finite_scalar_with_a_gradient(name: str):
    term = registry.build("losses", name, {})
    images = IMAGES.clone().requires_grad_()
    value = term(images, LABELS)
    assert value.shape == ()
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, images)
    assert gradient.abs().sum() > 0
    assert term(images, LABELS).item() == value.item()


def test_files_without_a_part_are_not_parts():
    assert "base" not in registry.names("losses")
    assert "soft_labels" not in registry.names("losses")
    assert registry.names("distillers") == sorted(registry.names("distillers"))
