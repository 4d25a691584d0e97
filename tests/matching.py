"""Small tasks of gradient matching: what its loop and its methods are tested on."""

from collections.abc import Sequence
from typing import Any

import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher

from fedistill.condenser import Images
from fedistill.distillers.base import Distilled, Task
from fedistill.distillers.condensation import Condensation
from fedistill.images import DataSpec, ImageSet
from fedistill.matching_options import MatchingOptions
from fedistill.reference import Reference

SPEC, SHARD = tiny_spec(), tiny_images(30)
QUICK: dict[str, Any] = {
    "iterations": 3, "width": 4, "depth": 2, "network_images": 8, "batch_real": 4,
}  # fmt: skip
OPTIONS = MatchingOptions(**QUICK)


def reference(images: ImageSet = SHARD, spec: DataSpec = SPEC, **changes: Any) -> Reference:
    return Reference(
        **{"images": images, "spec": spec, "seed": 0, "path": ("test",), "device": CPU, **changes}
    )


def images_of(
    counts: Sequence[int], options: MatchingOptions = OPTIONS, ipc: int | None = None
) -> Images:
    start = torch.randn(sum(counts), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    SPEC.clamp_(start)
    return Images(start, counts, ipc or max(counts), options, reference())


def task(counts: Sequence[int], **changes: Any) -> Task:
    return Task(
        **{
            "counts": counts,
            "shard": SHARD,
            "teachers": [tiny_teacher()],
            "models": [CONVNET],
            "spec": SPEC,
            "seed": 0,
            "partition_id": 0,
            "device": CPU,
            "ipc": max(counts),
            **changes,
        }
    )


def of(part: Condensation, *sizes: int, **changes: Any) -> list[Distilled]:
    return part.distill_sizes([task([size] * 3, **changes) for size in sizes])
