"""What tests of relabelling share: a small set, and teachers of which each says its own class."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from fakes import CPU, Constant, tiny_config, tiny_set, tiny_spec
from torch import nn

from fedistill import relabel
from fedistill.sets import SyntheticSet

SPEC = tiny_spec()
CONFIG = replace(tiny_config().relabel, views=6, scale=(0.5, 1.0), mix="none")


def labelled(
    teachers: Mapping[int, nn.Module],
    synthetic: SyntheticSet | None = None,
    *,
    seed: int = 0,
    histograms: Mapping[int, Sequence[int]] | None = None,
    **changes: object,
) -> SyntheticSet:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    return relabel.relabel(
        synthetic or tiny_set(),
        teachers,
        config,
        seed=seed,
        device=CPU,
        dtype=torch.float32,
        histograms=histograms,
    )


def logits(*args: object, **options: object) -> torch.Tensor:
    labels = labelled(*args, **options).soft_labels  # type: ignore[arg-type]
    assert labels is not None
    return labels.logits


def constant_teachers(count: int = 3) -> dict[int, Constant]:
    return {number: Constant([float(number), 1.0, -1.0]) for number in range(count)}
