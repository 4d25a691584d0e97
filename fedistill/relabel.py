"""Relabel: teachers say what random views of the synthetic images show.

Distributed Boosting (DB, Eq. 9): every view of every image is labelled by a teacher drawn at
random among all clients, so the labels of one image come from many teachers over the views,
as bagging does. `own`, `single` and `mean` are the controls beside it.

Each view is labelled once; every student replays it from the seed (FKD).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedistill import crops
from fedistill.config import RelabelConfig
from fedistill.crops import ViewOptions
from fedistill.images import DataSpec
from fedistill.seeding import derive_seed, generator
from fedistill.sets import SoftLabels, SyntheticSet
from fedistill.training import autocast

_BATCH = 500  # views labelled together: bounds memory, and keeps the caches of a CPU warm


def view_options(config: RelabelConfig, spec: DataSpec) -> ViewOptions:
    """Return the distribution of the views; mirroring follows the data set unless given."""
    assert config.scale is not None
    return ViewOptions(
        scale=config.scale,
        shift=config.shift or 0,
        flip=spec.flip if config.flip is None else config.flip,
        tiles=config.tiles or 1,
        tile_share=config.tile_share or 0.0,
        mix=config.mix or "none",
        mix_alpha=config.mix_alpha or 1.0,
        mix_probability=1.0 if config.mix_probability is None else config.mix_probability,
    )


def choose_teachers(
    name: str, clients: Tensor, teachers: list[int], stream: torch.Generator
) -> Tensor:
    """Choose who labels each image in one view.

    Args:
        name: `mix`, `own` or `single`.
        clients: partition id that made each image, [M].
        teachers: partition ids that have a teacher, sorted.
        stream: drawn from for `mix` (DB: k uniform in 1..N, anew for every crop).

    Returns:
        Partition ids, int64 [M].
    """
    if name == "own":
        return clients
    if name == "single":
        return torch.full_like(clients, teachers[0])
    drawn = torch.randint(len(teachers), (len(clients),), generator=stream)
    return torch.tensor(teachers)[drawn]


@torch.no_grad()
def relabel(
    synthetic: SyntheticSet,
    teachers: Mapping[int, nn.Module],
    config: RelabelConfig,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> SyntheticSet:
    """Label random views of a set with its clients' teachers.

    Args:
        synthetic: the integrated set.
        teachers: by partition id, in eval mode.
        config: how many views, and who labels them.
        seed: decides views and teachers.
        device: where to label.
        dtype: of the convolutions.
        report: called with views done and views in all.

    Returns:
        The same set with soft labels, float16 [views, M, C].
    """
    assert config.views is not None
    spec = synthetic.spec
    labels = SoftLabels(
        torch.empty(config.views, len(synthetic), spec.num_classes, dtype=torch.float16),
        derive_seed(seed, "relabel", len(synthetic)),
        view_options(config, spec),
    )
    images = spec.normalise(synthetic.images.to(device))
    outside = spec.outside(device) if labels.options.shift else None
    ids = sorted(teachers)
    # Views are labelled in blocks: one batch for each teacher and block, not one for each view.
    block = max(1, _BATCH // len(synthetic))
    for first in range(0, config.views, block):
        views = range(first, min(first + block, config.views))
        shown = torch.cat([_show(images, labels, view, outside) for view in views])
        if config.name == "mean":
            answers = torch.stack([_ask(teachers[i], shown, dtype) for i in ids]).mean(0)
        else:
            chosen = torch.cat(
                [
                    choose_teachers(
                        config.name, synthetic.clients, ids, generator(labels.seed, "teacher", view)
                    )
                    for view in views
                ]
            )
            answers = torch.empty(len(shown), spec.num_classes, device=device)
            for teacher in chosen.unique().tolist():
                mine = (chosen == teacher).nonzero()[:, 0].to(device)
                answers[mine] = _ask(teachers[teacher], shown[mine], dtype)
        labels.logits[first : first + len(views)] = answers.view(
            len(views), len(synthetic), -1
        ).half()
        report(first + len(views), config.views)
    return replace(synthetic, soft_labels=labels)


def _show(images: Tensor, labels: SoftLabels, view: int, outside: Tensor | None) -> Tensor:
    everything = torch.arange(len(images), device=images.device)
    return crops.render(images, labels.views(view, images.shape[-1]), everything, outside)


def _ask(teacher: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with autocast(images.device, dtype):
        batches = images.contiguous(memory_format=torch.channels_last).split(_BATCH)
        return torch.cat([teacher(batch).float() for batch in batches])
