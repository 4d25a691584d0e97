"""Squeeze: a client trains its teacher on its shard.

SGD with Nesterov momentum, a linear warm-up and a linear decay, random shifts and, where the
data set allows it, mirroring. Label smoothing is off: it flattens what students learn from
(Mueller et al. 2019). The shard stays on the device as one uint8 tensor.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import crops
from fedistill.config import ModelConfig, TeacherConfig
from fedistill.crops import ViewOptions
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.seeding import generator
from fedistill.training import (
    autocast,
    load_weights,
    seeded,
    set_learning_rate,
    warmup_then_decay,
)

Report = Callable[[int, int, float], None]


def augmentation(config: TeacherConfig, spec: DataSpec) -> ViewOptions:
    """Return how training images are shifted and mirrored: by data set, unless the user says."""
    return ViewOptions(
        shift=max(1, spec.size // 8) if config.shift is None else config.shift,
        flip=spec.flip if config.flip is None else config.flip,
    )


def squeeze(
    shard: ImageSet,
    spec: DataSpec,
    model_config: ModelConfig,
    config: TeacherConfig,
    *,
    seed: int,
    path: tuple[str | int, ...] = ("squeeze",),
    start: Mapping[str, Tensor] | None = None,
    device: torch.device,
    dtype: torch.dtype,
    report: Report = lambda done, total, loss: None,
) -> tuple[nn.Module, list[tuple[int, float]]]:
    """Train a teacher on a shard.

    Args:
        shard: real images of one client.
        spec: of the data set.
        model_config: the teacher's network.
        config: the recipe.
        seed: with `path`, decides weights, order and augmentation.
        path: stage and ids.
        start: weights and buffers to train on from; None: fresh ones.
        device: where to train.
        dtype: of the convolutions.
        report: called after each epoch with epochs done, epochs in all, and the mean loss.

    Returns:
        The teacher in eval mode, without gradients, and its loss curve (epoch, mean loss).

    Raises:
        RuntimeError: `start` is not of this network.
    """
    model = build(model_config, spec, seed, *path, "weights").to(device)
    if start is not None:
        load_weights(model, start)
    stream = generator(seed, *path, "batches")
    options = augmentation(config, spec)
    images, labels = shard.images.to(device), shard.labels.to(device)
    outside = spec.outside(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    batches = -(-len(shard) // config.batch_size)
    curve: list[tuple[int, float]] = []
    with seeded(model, seed, *path):
        for epoch in range(config.epochs):
            model.train()
            losses = []
            order = torch.randperm(len(shard), generator=stream)
            for step, index in enumerate(order.tensor_split(batches)):
                done = (epoch * batches + step + 1) / (config.epochs * batches + 1)
                set_learning_rate(optimizer, config.lr * warmup_then_decay(config.warmup, done))
                views = crops.draw(len(index), spec.size, options, stream)
                inputs = crops.apply(spec.normalise(images[index.to(device)]), views, outside)
                with autocast(device, dtype):
                    logits = model(inputs.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(
                    logits.float(), labels[index.to(device)], label_smoothing=config.label_smoothing
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            curve.append((epoch + 1, torch.stack(losses).mean().item()))
            report(epoch + 1, config.epochs, curve[-1][1])
    return freeze(model), curve


def freeze(model: nn.Module) -> nn.Module:
    """Put a network in eval mode and switch the gradients of its weights off."""
    return model.eval().requires_grad_(False)


class Committee(nn.Module):
    """The teachers of one client as one network: the mean of their logits (G-VBSM, EDC)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes]."""
        return torch.stack([member(images).float() for member in self.members]).mean(0)
