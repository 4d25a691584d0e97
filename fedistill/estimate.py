"""How long a federation will take here: every stage is timed for a moment on random images.

Good for plans and for the ETA of a sweep, not for claims: the cost of a method is continued in a
straight line from its first iterations, and a simulation's clients share the machine.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from fedistill import planning
from fedistill.config import Config
from fedistill.config_students import ENSEMBLES
from fedistill.cores import set_threads, usable_cores
from fedistill.distillers.base import Distiller, Task
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.relabel import relabel, view_options
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.student import at_ipc, train
from fedistill.teacher import freeze, squeeze
from fedistill.training import device_for, resolve_precision

_REAL = 512  # images of a timed squeeze
_IMAGES = 50  # synthetic ones of a timed recover
_VIEWS = 5
_STUDENT_EPOCHS = 3
_WITHOUT_A_SET = {*ENSEMBLES, "weight_average", "fedavg", "full_data"}
_FEDERATION_S = 5.0  # to describe, to test the teachers, to draw and to write


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of one worker.

    Attributes:
        squeeze: a real image in one epoch, all teachers of a client together.
        recover: a synthetic image, from start to end.
        relabel: a view.
        student: a view, forward and backward; the mean of the student models.
    """

    squeeze: float
    recover: float
    relabel: float
    student: float


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a federation has to do.

    Attributes:
        shards: real images of each client whose teachers are not kept yet.
        images: synthetic images that each client whose share is not kept yet makes.
        real: real images of all clients.
    """

    shards: Sequence[int]
    images: Sequence[int]
    real: int


def rates(config: Config, spec: DataSpec) -> Rates:
    """Time each stage of an experiment for a moment."""
    stream = generator(0, "estimate")
    shape = (_REAL, spec.channels, spec.size, spec.size)
    labels = torch.arange(_REAL) % spec.num_classes
    real = ImageSet(torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8), labels)
    set_threads(config.federation.cpus_per_client)
    device = device_for(config.federation.gpus_per_client)
    dtype = resolve_precision(config.precision, device)
    models = config.teachers_of(0)
    recipe = replace(config.teacher, epochs=1, count=1, backbones=())

    def train_teachers() -> None:
        for model in models:
            squeeze(real, spec, model, recipe, seed=0, device=device, dtype=dtype)

    teachers = [freeze(build(model, spec, 0, "estimate").to(device)) for model in models]
    task = Task(
        # Few images would fill their batches badly, and cost more each.
        counts=[max(1, _IMAGES // spec.num_classes)] * spec.num_classes,
        shard=real,
        teachers=teachers,
        models=models,
        spec=spec,
        seed=0,
        partition_id=0,
        device=device,
        dtype=dtype,
    )
    synthetic = SyntheticSet(
        spec=spec,
        images=real.images[:100],
        hard_labels=labels[:100],
        clients=torch.zeros(100, dtype=torch.int64),
    )
    # A teacher's answer takes as long whoever is asked, and why.
    few = replace(
        config.relabel,
        views=_VIEWS,
        name="mix",
        teacher_choice="uniform",
        prior_correction=False,
    )
    student = replace(config.student, epochs=_STUDENT_EPOCHS)
    views = view_options(config.relabel, spec)
    squeezed = _seconds(train_teachers) / _REAL
    recovered = _recover_seconds(planning.distiller_of(config), task)
    set_threads(1)  # the server's jobs have one thread each, side by side
    where: dict[str, Any] = {"seed": 0, "device": device, "dtype": dtype}
    labelled = relabel(synthetic, {0: teachers[0]}, few, **where)
    return Rates(
        squeeze=squeezed,
        recover=recovered,
        relabel=_seconds(lambda: relabel(synthetic, {0: teachers[0]}, few, **where))
        / (_VIEWS * len(synthetic)),
        student=sum(
            _seconds(partial(train, labelled, model, student, views, number=0, **where))
            for model in config.student.networks
        )
        / (len(config.student.networks) * _STUDENT_EPOCHS * len(synthetic)),
    )


def seconds(config: Config, spec: DataSpec, rates: Rates, load: Load) -> float:
    """Return how long a federation takes, in seconds.

    Args:
        config: of the federation.
        spec: of the data set.
        rates: of this machine.
        load: what is left for the clients.
    """
    cores = usable_cores()
    workers = max(1, cores // config.federation.cpus_per_client)
    jobs = [
        size * config.teacher.epochs * rates.squeeze + images * rates.recover
        for size, images in zip(load.shards, load.images, strict=True)
    ]
    # No schedule ends before its longest job, and none before all hands have done their part.
    clients = max(max(jobs, default=0.0), sum(jobs) / workers)
    clients += _averaged(config, load) * rates.squeeze / workers
    labelled, trained = _views(config, spec)
    server = labelled * rates.relabel + trained * rates.student
    return _FEDERATION_S + clients + server / cores


def passes(config: Config, spec: DataSpec, load: Load) -> int:
    """Return about how many passes of an image through a network a federation takes.

    Nothing is timed: good enough to weigh the federations of a sweep against each other.
    """
    iterations = getattr(planning.distiller_of(config), "iterations", 1)
    labelled, trained = _views(config, spec)
    squeezed = sum(load.shards) * config.teacher.epochs * len(config.teachers_of(0))
    return (
        squeezed + _averaged(config, load) + sum(load.images) * iterations + labelled // 3 + trained
    )


def _averaged(config: Config, load: Load) -> int:
    """Return how many real images FedAvg trains on, epoch by epoch."""
    rounds, epochs = config.fedavg.rounds, config.fedavg.epochs or config.teacher.epochs
    return load.real * rounds * epochs if "fedavg" in config.baselines else 0


def _views(config: Config, spec: DataSpec) -> tuple[int, int]:
    """Return how many views the server labels, and how many its students are trained on."""
    student, images = config.student, sum(config.distill.ipc) * spec.num_classes
    sets = 1 + sum(student.seeds if name == "random" else 1 for name in config.coresets)
    rows = len(student.models) + len({*config.baselines} - _WITHOUT_A_SET)
    asked = config.partition.clients if config.relabel.name == "mean" else 1  # for every view
    labelled = images * sets * asked * (config.relabel.views or 0)
    trained = sum(ipc * at_ipc(student.epochs or 0, ipc) for ipc in config.distill.ipc)
    return labelled, trained * spec.num_classes * rows * student.seeds


def _recover_seconds(distiller: Distiller, task: Task) -> float:
    """Time one and two iterations, and continue in a straight line; seconds an image."""
    images = sum(task.counts)
    iterations: int | None = getattr(distiller, "iterations", None)
    if iterations is None:
        return _seconds(lambda: distiller.distill(task)) / images
    few, more = (
        _seconds(partial(replace(distiller, iterations=steps).distill, task))  # type: ignore[type-var]
        for steps in (1, 3)
    )
    step = max(0.0, more - few) / 2
    return (few + step * (iterations - 1)) / images


def _seconds(work: Callable[[], object]) -> float:
    """Return the shorter of two times: the first holds what is done only once."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)
