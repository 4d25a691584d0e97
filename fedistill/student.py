"""Train fresh students on a set and test them: what a distilled set is worth.

The accuracy is that of the last epoch on the whole test split; several seeds give mean and
standard deviation. A student sees view `epoch mod V` of every image, exactly as the teachers
saw it; for a set without soft labels it sees views of the same kind with hard labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import crops
from fedistill.config import ModelConfig, StudentConfig
from fedistill.crops import ViewOptions, Views
from fedistill.losses.soft_labels import logit_mse, soft_kl
from fedistill.models import build
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.training import (
    autocast,
    learning_rate_factor,
    seeded,
    set_learning_rate,
)

Report = Callable[[int, int], None]
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Score:
    """Accuracy of several students, in percent.

    Attributes:
        top1: one for each seed.
        curves: for each seed, (epoch, mean training loss), thinned.
        network: the student of the first seed on the CPU, where it was kept.
        tested: how many `images` of how many `devices` it was tested on, where that was done
            by devices.
    """

    top1: list[float]
    curves: list[Curve]
    network: nn.Module | None = None
    tested: Mapping[str, int] | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.top1) / len(self.top1)

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds; 0 for one seed."""
        if len(self.top1) < 2:
            return 0.0
        squares = sum((value - self.mean) ** 2 for value in self.top1)
        return float((squares / (len(self.top1) - 1)) ** 0.5)

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json holds for a student or a baseline."""
        top1 = [round(value, 3) for value in self.top1]
        return {
            "top1": top1,
            "top1_mean": round(self.mean, 3),
            "top1_std": round(self.std, 3),
            "n": len(top1),
            **({} if self.tested is None else {"tested_on": dict(self.tested)}),
        }


def ipc_of(images: int, num_classes: int) -> int:
    """Return the IPC of a set of so many images; of fewer than there are classes it is 1."""
    return max(1, images // num_classes)


def at_ipc(value: int | Mapping[int, int], ipc: int) -> int:
    """Return what holds for an IPC; in a table the entry of the nearest smaller one does."""
    if isinstance(value, int):
        return value
    return value[max((known for known in value if known <= ipc), default=min(value))]


def train(
    synthetic: SyntheticSet,
    model_config: ModelConfig,
    config: StudentConfig,
    views: ViewOptions,
    *,
    seed: int,
    number: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report = lambda done, total: None,
) -> tuple[nn.Module, Curve]:
    """Train one student.

    Args:
        synthetic: the set, with or without soft labels.
        model_config: the student's network.
        config: the recipe; every key filled in.
        views: what a set without soft labels is shown as.
        seed: of the experiment.
        number: which student; enters every seed.
        device: where to train.
        dtype: of the convolutions.
        report: called with epochs done and epochs in all.

    Returns:
        The student (its moving average, where `ema` is above 0), and its loss curve.
    """
    assert config.epochs is not None and config.batch_size is not None  # noqa: PT018
    assert config.lr is not None
    assert config.schedule is not None and config.ema is not None  # noqa: PT018
    assert config.zeta is not None
    spec = synthetic.spec
    path = ("student", model_config.name, number)
    model = build(model_config, spec, seed, *path, "weights").to(device)
    average = _MovingAverage(model, config.ema)
    stream = generator(seed, *path, "batches")
    optimizer = _optimizer(model, config)
    images = spec.normalise(synthetic.images.to(device))
    hard_labels = synthetic.hard_labels.to(device)
    ipc = ipc_of(len(synthetic), spec.num_classes)
    epochs = at_ipc(config.epochs, ipc)
    batches = -(-len(synthetic) // at_ipc(config.batch_size, ipc))
    curve: Curve = []
    every = max(1, epochs // 50)
    outside = spec.outside(device) if _leaves_frame(synthetic, views) else None
    with seeded(model, seed, *path):
        for epoch in range(epochs):
            model.train()
            shown, answers = _view(synthetic, views, seed, number, epoch)
            losses = []
            order = torch.randperm(len(synthetic), generator=stream)
            target = None if answers is None else answers[order].to(device).float()
            for step, place in enumerate(torch.arange(len(order)).tensor_split(batches)):
                index = order[place].to(device)
                done = (epoch * batches + step) / (epochs * batches)
                factor = learning_rate_factor(config.schedule, done, config.zeta)
                set_learning_rate(optimizer, config.lr * factor)
                inputs = crops.render(images, shown, index, outside)
                with autocast(device, dtype):
                    logits = model(inputs.contiguous(memory_format=torch.channels_last)).float()
                wanted = None if target is None else target[place[0] : place[-1] + 1]
                loss = _loss(logits, wanted, hard_labels, shown, index, config)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                average.update(model)
                losses.append(loss.detach())
            if epoch % every == 0 or epoch + 1 == epochs:
                curve.append((epoch + 1, torch.stack(losses).mean().item()))
                report(epoch + 1, epochs)
    return average.result(model).eval(), curve


def _leaves_frame(synthetic: SyntheticSet, views: ViewOptions) -> bool:
    labels = synthetic.soft_labels
    return (labels.options if labels else views).shift > 0


def _view(
    synthetic: SyntheticSet, options: ViewOptions, seed: int, number: int, epoch: int
) -> tuple[Views, Tensor | None]:
    """Return the views of one epoch and the teachers' logits for them, if there are any."""
    labels = synthetic.soft_labels
    if labels is None:
        stream = generator(seed, "hard views", number, epoch)
        return crops.draw(len(synthetic), synthetic.spec.size, options, stream), None
    view = epoch % len(labels)
    return labels.views(view, synthetic.spec.size), labels.logits[view]


def _loss(
    logits: Tensor,
    teacher_logits: Tensor | None,
    hard_labels: Tensor,
    views: Views,
    index: Tensor,
    config: StudentConfig,
) -> Tensor:
    """Loss of a batch: soft where teachers have answered, else hard."""

    def hard() -> Tensor:
        loss = F.cross_entropy(logits, hard_labels[index])
        if views.partner is None:
            return loss
        other = F.cross_entropy(logits, hard_labels[views.partner.to(index.device)[index]])
        return views.own_share * loss + (1 - views.own_share) * other

    if teacher_logits is None:
        return hard()
    if config.loss == "mse":
        loss = logit_mse(logits, teacher_logits)
    else:
        assert config.temperature is not None
        loss = soft_kl(logits, teacher_logits, config.temperature)
    return loss + config.ce_weight * hard() if config.ce_weight else loss


def _optimizer(model: nn.Module, config: StudentConfig) -> torch.optim.Optimizer:
    assert config.lr is not None and config.weight_decay is not None  # noqa: PT018
    # Fused and foreach forms: a small network's step is bound by the number of calls.
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=0.9,
            weight_decay=config.weight_decay,
            nesterov=True,
            fused=True,
        )
    return torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )


class _MovingAverage:
    """Exponential moving average of the weights (EDC); buffers are the student's own.

    The decay grows to its value as (1 + t) / (10 + t) over the updates t: with a constant 0.99
    a short training would end on its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._weights = [p.detach().clone() for p in model.parameters()] if decay else []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        if self._weights:
            self._updates += 1
            decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
            weights = [p.detach() for p in model.parameters()]
            torch._foreach_lerp_(self._weights, weights, 1 - decay)

    @torch.no_grad()
    def result(self, model: nn.Module) -> nn.Module:
        for weight, average in zip(model.parameters(), self._weights, strict=False):
            weight.copy_(average)
        return model
