"""What every extra loss term promises; a new file in `losses/` is tested without being listed."""

import pytest
import torch
from fakes import CPU, tiny_images, tiny_spec, tiny_teacher

from fedistill import registry
from fedistill.losses.base import Surroundings

STREAM = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 3, 8, 8, generator=STREAM)
LABELS = torch.tensor([0, 1, 1, 2])
SPEC = tiny_spec(channels=3)


@pytest.mark.parametrize("name", registry.names("losses"))
def test_a_term_is_a_finite_scalar_with_a_gradient(name: str):
    around = Surroundings(
        shard=tiny_images(spec=SPEC),
        teachers=[tiny_teacher(spec=SPEC)],
        spec=SPEC,
        seed=0,
        path=("recover", 0, 0),
        device=CPU,
        dtype=torch.float32,
    )
    term = registry.build("losses", name, {}).prepared(around)
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
