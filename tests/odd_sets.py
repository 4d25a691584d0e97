"""Sets of other kinds than the plain one, and ways to change one."""

from collections.abc import Callable
from dataclasses import replace

import torch
from fakes import tiny_images, tiny_spec

from fedistill import whitening

COLOUR = tiny_spec(channels=3)
WHITENED = replace(tiny_spec(), zca=whitening.fit(tiny_images().images))


def change(index: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    def changed(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.view(-1)[index] += 1
        return copy

    return changed
