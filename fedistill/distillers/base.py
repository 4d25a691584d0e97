"""What a distiller is: options in a frozen dataclass, and one method that makes images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedistill.config import STRICT, ModelConfig
from fedistill.images import DataSpec, ImageSet
from fedistill.losses.base import Regularizer, Surroundings
from fedistill.models.build import require_batch_norm
from fedistill.seeding import generator

_CURVE_POINTS = 50


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one client is asked to make, and what it may use.

    Attributes:
        counts: images wanted of each class, [num_classes].
        shard: the client's real images.
        teachers: the client's own, in eval mode, without gradients; at least one.
        models: the network of each teacher: what a method trains of its own looks like them.
        spec: of the data set.
        seed: of the experiment.
        partition_id: of the client; enters every seed.
        attempt: 0 for the first request; a later request for more images counts on, so that
            they differ from those already made.
        made: images of each class that each earlier request got, one row for an attempt; empty:
            none. A method whose images are real ones, or parts of them, leaves those out.
        ipc: of the set that the images are for, the largest where small ones are cut out of it.
            Curves are named by it; images may depend on it where the method says so
            (`Distiller.depends_on_ipc`).
        device: where to work.
        dtype: convolutions may run in this type where the maths allows it.
        regularizers: extra loss terms with their weights.
        report: called with iterations done, iterations in all, and the loss, where there is one.
        recall: returns a batch that was made before, by what decides it beside this task's
            client, teachers and options; or makes it and keeps it.
    """

    counts: Sequence[int]
    shard: ImageSet
    teachers: Sequence[nn.Module]
    models: Sequence[ModelConfig]
    spec: DataSpec
    seed: int
    partition_id: int
    attempt: int = 0
    made: Sequence[Sequence[int]] = ()
    ipc: int = 0
    device: torch.device
    dtype: torch.dtype = torch.float32
    regularizers: Sequence[tuple[float, Regularizer]] = ()
    report: Callable[[int, int, float | None], None] = field(default=lambda done, total, loss: None)
    recall: Callable[[Mapping[str, Any], Callable[[], "Batch"]], "Batch"] = field(
        default=lambda key, make: make()
    )

    def stream(self, *path: str | int) -> torch.Generator:
        """Return a generator of this client's for one stage."""
        return generator(self.seed, "recover", self.partition_id, self.attempt, *path)

    def earlier(self) -> list["Task"]:
        """Return the requests before this one that got images.

        A method that chooses real images by rank repeats these choices, to leave them out.
        """
        return [
            replace(self, counts=counts, made=self.made[:attempt], attempt=attempt)
            for attempt, counts in enumerate(self.made)
            if any(counts)
        ]

    def terms(self) -> list[tuple[float, Regularizer]]:
        """Return the extra loss terms, ready for use, with their weights."""
        around = Surroundings(
            shard=self.shard,
            teachers=self.teachers,
            spec=self.spec,
            seed=self.seed,
            path=("recover", self.partition_id, self.attempt),
            device=self.device,
            dtype=self.dtype,
        )
        return [(weight, term.prepared(around)) for weight, term in self.regularizers]

    @property
    def labels(self) -> Tensor:
        """Hard labels of the images wanted, class by class, int64 [M]."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))


class Batch(NamedTuple):
    """Images that were optimised together, uint8 [B, C, H, W], and their (iteration, loss)."""

    images: Tensor
    curve: list[tuple[int, float]]


@dataclass(frozen=True)
class Distilled:
    """What a distiller hands back.

    Attributes:
        images: uint8 [M, C, H, W], class by class in the order of `Task.labels`. Sets of a
            smaller IPC may get the first images of each class (`Distiller.optimises_jointly`):
            methods that choose put the best there.
        curve: (iteration, loss), thinned.
        curves: others worth a look, by name: (iteration, value), thinned.
    """

    images: Tensor
    curve: list[tuple[int, float]]
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)


class Distiller(ABC):
    """Makes synthetic images from a shard and its teachers."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    @property
    def uses_real_images(self) -> bool:
        """Whether real images, or parts of them, are in what leaves the device."""
        return False

    @property
    def needs_batch_norm(self) -> bool:
        """Whether teachers must have BatchNorm layers."""
        return False

    @property
    def takes_regularizers(self) -> bool:
        """Whether there is an optimisation that an extra loss term could enter."""
        return True

    @property
    def real_images_per_image(self) -> int:
        """Different real images of a class that one synthetic image needs; 0: any number will do.

        A client is never asked for more images than its shard can make.
        """
        return 0

    @property
    def optimises_jointly(self) -> bool:
        """Whether images of a class are made for each other, so that the first k are no set for k.

        In a run of several IPC every set then has images of its own; else the small ones are cut
        out of the largest.
        """
        return False

    @property
    def depends_on_ipc(self) -> bool:
        """Whether `Task.ipc` changes what is made, beside the number of images that are wanted."""
        return False

    @property
    def cotrains_sizes(self) -> bool:
        """Whether these sets of several IPC are made in one go: `distill_sizes` is given all."""
        return False

    def for_sizes(self, ipc: Sequence[int]) -> "Distiller":
        """Return it with the options that follow from the sizes of the config, if left out."""
        return self

    @property
    def mosaic_tiles(self) -> int:
        """Tiles a side of each image, where it is a mosaic that views of single tiles suit."""
        return 1

    def check(self, model: nn.Module, config: ModelConfig, spec: DataSpec) -> None:
        """Refuse a teacher's network that the method cannot use.

        Args:
            model: freshly made.
            config: that it was made from.
            spec: of the data set.

        Raises:
            ModelError: with what is accepted.
        """
        if self.needs_batch_norm:
            require_batch_norm(model, config, type(self).__name__)

    @abstractmethod
    def distill(self, task: Task) -> Distilled:
        """Make the images that a task asks for."""

    def distill_sizes(self, tasks: Sequence[Task]) -> list[Distilled]:
        """Make the images of several sets; the tasks differ in `counts`, `made` and `ipc` alone."""
        return [self.distill(task) for task in tasks]


class Progress:
    """Thinned loss curve of an optimisation, told to whoever watches.

    Args:
        task: its `report` is called.
        total: iterations in all.
        first: how many of them the curve holds; the others are only told. None: all.
    """

    def __init__(self, task: Task, total: int, first: int | None = None) -> None:
        self.curve: list[tuple[int, float]] = []
        self._task = task
        self._total = total
        self._first = total if first is None else first
        self.done = 0

    def skip(self, steps: int, curve: Sequence[tuple[int, float]]) -> None:
        """Pass over iterations that were made before; the first ones bring their curve along."""
        if self.done == 0:
            self.curve = list(curve)
        self.done += steps
        self._task.report(self.done, self._total, None)

    def step(self, loss: Tensor) -> None:
        """Note one iteration with its loss, a scalar."""
        step = self.done
        self.done += 1
        every = max(1, self._first // _CURVE_POINTS)
        if step % every and (step + 1) % self._first and self.done < self._total:
            return  # reading the loss makes a GPU wait
        value = loss.item()
        if step < self._first:
            self.curve.append((step, value))
        self._task.report(self.done, self._total, value)


class Trace:
    """About fifty points of each of several curves.

    Args:
        total: steps in all.
    """

    def __init__(self, total: int) -> None:
        self._every = max(1, total // _CURVE_POINTS)
        self._last = total - 1
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[Tensor]] = {}

    def note(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep the values of a step, by the names of their curves; scalars, on any device."""
        if step % self._every and step != self._last:
            return
        for name, value in values.items():
            self._steps.setdefault(name, []).append(step)
            self._values.setdefault(name, []).append(value.detach())

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) by name."""
        return {
            name: list(zip(self._steps[name], torch.stack(values).tolist(), strict=True))
            for name, values in self._values.items()
        }


def real_images(task: Task) -> Tensor:
    """Choose random real images of the shard as a start, uint8 [M, C, H, W].

    A class with fewer images than wanted repeats them; a class without any is not asked for.
    """
    stream = task.stream("real")
    chosen = []
    for label, count in enumerate(task.counts):
        mine = (task.shard.labels == label).nonzero()[:, 0]
        order = mine[torch.randperm(len(mine), generator=stream)]
        assert count == 0 or len(mine) > 0, f"asked for class {label}, which this shard lacks"
        chosen += [order.repeat(-(-count // max(1, len(order))))[:count]]
    return task.shard.images[torch.cat(chosen)]


def first_images(task: Task, init: Literal["real", "noise"]) -> Tensor:
    """Make what a method starts from that treats equal images alike at every step.

    Args:
        task: what is asked for.
        init: `noise` is N(0, 1) in normalised units. `real` is random real images, each at most
            once: where a class has fewer than wanted, the others start from noise, since copies
            would stay copies.

    Returns:
        Normalised, float32 [M, C, H, W].
    """
    spec = task.spec
    shape = (sum(task.counts), spec.channels, spec.size, spec.size)
    noise = torch.randn(shape, generator=task.stream("noise"))
    if init == "noise":
        return noise
    rank = torch.cat([torch.arange(count) for count in task.counts])
    held = torch.tensor(task.shard.histogram(spec.num_classes))[task.labels]
    fresh = (rank < held)[:, None, None, None]
    return torch.where(fresh, spec.normalise(real_images(task)), noise)
