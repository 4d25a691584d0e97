"""How long a federation will take here: every stage is timed for a moment on random images.

Good for plans and for the ETA of a sweep, not for claims: the cost of a method is continued in a
straight line from its first iterations, and a simulation's clients share the machine. Where what is
made is matched to real images, a step costs something whatever the number of images: a client with
few of them and one with all are timed, of ten classes at most, whose cost is that of each class.

Left out: what federations share in parts (the first images of a larger set); cores that are idle
while the last student is trained; `mdc`'s reviews; what a public data set adds to co-training;
DD-Ranking's own rows.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from fedistill import planning, registry
from fedistill.config import ASK_ALL, Config
from fedistill.config_students import ENSEMBLES
from fedistill.cores import set_threads, usable_cores
from fedistill.cotrain import MIB, cotrain
from fedistill.distillers.base import Task
from fedistill.distillers.condensation import Condensation
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.relabel import relabel, view_options
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.student import at_ipc, train
from fedistill.teacher import freeze, squeeze
from fedistill.training import device_for, resolve_precision

_REAL = 512  # images of a timed squeeze
_IMAGES = 50  # synthetic ones of a timed recover, where each costs the same
_CLASSES = 10  # most of them in a timed matching of real images
_LONG = 1.0  # seconds of one iteration whose first ones are timed once
_CANDIDATES = 1000  # most real images of a class there
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
        relabel: a view, made and answered.
        answer: of one more teacher about the same view.
        student: a view, forward and backward; the mean of the student models.
        start: a client's recover beside its images.
        cotrain: all of it, with all threads of the server.
    """

    squeeze: float
    recover: float
    relabel: float
    answer: float
    student: float
    start: float = 0.0
    cotrain: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a federation has to do.

    Attributes:
        shards: real images of each client whose teachers are not kept yet.
        images: synthetic images that each client whose share is not kept yet makes.
        real: real images of all clients.
        on_all: real images that the students of `full_data` are trained on; 0: they are kept.
    """

    shards: Sequence[int]
    images: Sequence[int]
    real: int
    on_all: int = 0


def rates(config: Config, spec: DataSpec) -> Rates:
    """Time each stage of an experiment for a moment."""
    real = _random_images(spec, _REAL, spec.num_classes)
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
        counts=(),
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
        hard_labels=real.labels[:100],
        clients=torch.zeros(100, dtype=torch.int64),
    )
    # A teacher's answer takes as long whoever is asked, and why.
    few = replace(
        config.relabel,
        views=_VIEWS,
        name="mean",
        teacher_choice="uniform",
        prior_correction=False,
    )
    student = replace(config.student, epochs=_STUDENT_EPOCHS)
    views = view_options(config.relabel, spec)
    squeezed = _seconds(train_teachers) / _REAL
    start, recovered = _recover_seconds(config, task)
    cotrained = 0.0
    if config.cotrain is not None:
        set_threads()
        part = registry.build("cotrain", config.cotrain.name, config.cotrain.options)
        server = device_for(1.0)
        sizes, teacher = config.distill.ipc, teachers[0].to(server)
        cotrained = _cotrain_seconds(part, sizes, teacher, spec, server)
    set_threads(1)  # the server's jobs have one thread each, side by side
    device = device_for(1.0)
    where: dict[str, Any] = {
        "seed": 0,
        "device": device,
        "dtype": resolve_precision(config.precision, device),
    }
    teacher = teachers[0].to(device)
    shown = _VIEWS * len(synthetic)
    labelled = relabel(synthetic, {0: teacher}, few, **where)
    by_one, by_two = (
        _seconds(partial(relabel, synthetic, dict.fromkeys(range(count), teacher), few, **where))
        for count in (1, 2)
    )
    return Rates(
        squeeze=squeezed,
        recover=recovered,
        relabel=by_one / shown,
        answer=max(0.0, by_two - by_one) / shown,
        student=sum(
            _seconds(partial(train, labelled, model, student, views, number=0, **where))
            for model in config.student.networks
        )
        / (len(config.student.networks) * _STUDENT_EPOCHS * len(synthetic)),
        start=start,
        cotrain=cotrained,
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
        size * config.teacher.epochs * rates.squeeze
        + (rates.start + images * rates.recover if images else 0.0)
        for size, images in zip(load.shards, load.images, strict=True)
    ]
    # No schedule ends before its longest job, and none before all hands have done their part.
    clients = max(max(jobs, default=0.0), sum(jobs) / workers)
    clients += _averaged(config, load) * rates.squeeze / workers
    labelled, trained = _views(config, spec)
    server = labelled * (rates.relabel + (_asked(config) - 1) * rates.answer)
    server += trained * rates.student
    server += _on_all_data(config, load) * rates.squeeze
    # Side by side on a CPU's cores, one after another on a GPU (`training.side_by_side`).
    hands = cores if device_for(1.0).type == "cpu" else 1
    return _FEDERATION_S + clients + rates.cotrain + server / hands


def passes(config: Config, spec: DataSpec, load: Load) -> int:
    """Return about how many passes of an image through a network a federation takes.

    Nothing is timed: good enough to weigh the federations of a sweep against each other.
    """
    iterations = getattr(planning.distiller_of(config), "iterations", 1)
    labelled, trained = _views(config, spec)
    squeezed = sum(load.shards) * config.teacher.epochs * len(config.teachers_of(0))
    real = squeezed + _averaged(config, load) + _on_all_data(config, load)
    return real + sum(load.images) * iterations + labelled * _asked(config) // 3 + trained


def _asked(config: Config) -> int:
    """Return how many teachers are asked about each view."""
    return config.partition.clients if config.relabel.name in ASK_ALL else 1


def _averaged(config: Config, load: Load) -> int:
    """Return how many real images FedAvg trains on, epoch by epoch."""
    rounds, epochs = config.fedavg.rounds, config.fedavg.epochs or config.teacher.epochs
    return load.real * rounds * epochs if "fedavg" in config.baselines else 0


def _on_all_data(config: Config, load: Load) -> int:
    """Return how many real images the students of `full_data` train on, epoch by epoch."""
    students = config.student.seeds if "full_data" in config.baselines else 0
    return load.on_all * config.teacher.epochs * students


def _views(config: Config, spec: DataSpec) -> tuple[int, int]:
    """Return how many views the server labels, and how many its students are trained on."""
    student, images = config.student, sum(config.distill.ipc) * spec.num_classes
    sets = 1 + sum(student.seeds if name == "random" else 1 for name in config.coresets)
    rows = len(student.models) + len({*config.baselines} - _WITHOUT_A_SET)
    labelled = images * sets * (config.relabel.views or 0)
    trained = sum(ipc * at_ipc(student.epochs or 0, ipc) for ipc in config.distill.ipc)
    return labelled, trained * spec.num_classes * rows * student.seeds


def _recover_seconds(config: Config, task: Task) -> tuple[float, float]:
    """Time the recover of one client: seconds whatever it makes, and seconds an image."""
    distiller, classes = planning.distiller_of(config), task.spec.num_classes

    def timed(counts: Mapping[int, int], counted: int) -> float:
        tasks = [
            replace(task, ipc=ipc, counts=[count] * counted + [0] * (classes - counted))
            for ipc, count in counts.items()
        ]
        return _whole(distiller, lambda part: part.distill_sizes(tasks))

    sizes = config.distill.ipc
    if not (isinstance(distiller, Condensation) or distiller.optimises_jointly):
        # Few images would fill their batches badly, and cost more each.
        some = max(1, _IMAGES // classes)
        needed = some * classes * distiller.real_images_per_image
        task = replace(task, shard=_random_images(task.spec, max(_REAL, needed), classes))
        return 0.0, timed({max(sizes): some}, classes) / (some * classes)
    counted = min(_CLASSES, classes)
    task = replace(task, shard=_matched(distiller, task.spec, counted))
    own = {
        ipc: -(-ipc // config.partition.clients)
        for ipc in (sizes if distiller.optimises_jointly else [max(sizes)])
    }
    least = timed(dict.fromkeys(own, 1), counted) / counted
    more = sum(own.values()) - len(own)
    if not more:
        return 0.0, least / len(own)
    each = max(0.0, timed(own, counted) / counted - least) / more
    return max(0.0, least - len(own) * each) * classes, each


def _cotrain_seconds(
    options: MIB,
    sizes: Sequence[int],
    teacher: torch.nn.Module,
    spec: DataSpec,
    device: torch.device,
) -> float:
    """Time co-training of the sets, whose largest stands for all that is sent."""
    counted = min(_CLASSES, spec.num_classes)
    source = _matched(options, spec, counted)
    labels = torch.arange(counted)
    sets = {}
    for ipc in sizes if len(sizes) > 1 else [1, *sizes]:  # one alone is matched to public images
        chosen = (torch.arange(counted)[:, None] + counted * torch.arange(ipc)).flatten()
        sets[ipc] = SyntheticSet(
            spec=spec,
            images=source.images[chosen % len(source)],
            hard_labels=labels.repeat_interleave(ipc),
            clients=torch.zeros(counted * ipc, dtype=torch.int64),
        )
    alike = replace(options, reference="largest", public=None)

    def work(part: MIB) -> object:
        return cotrain(part, sets, (), {0: teacher}, seed=0, device=device)

    return _whole(alike, work) * spec.num_classes / counted


def _matched(options: object, spec: DataSpec, counted: int) -> ImageSet:
    """Make random images of some classes, as many as a step chooses among."""
    each = min(getattr(options, "candidates", None) or _CANDIDATES, _CANDIDATES)
    return _random_images(spec, counted * each, counted)


def _random_images(spec: DataSpec, count: int, classes: int) -> ImageSet:
    """Make as many images of each of the first classes as of any other."""
    shape = (count, spec.channels, spec.size, spec.size)
    stream = generator(0, "estimate")
    images = torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes)


def _whole(options: Any, work: Callable[[Any], object]) -> float:
    """Time one and three iterations with some options, and continue in a straight line."""
    iterations: int | None = getattr(options, "iterations", None)

    if iterations is None:
        return _seconds(partial(work, options))
    few = _seconds(partial(work, replace(options, iterations=1)))
    times = 2 if few < _LONG else 1

    def timed(**changes: int) -> float:
        return _seconds(partial(work, replace(options, **changes)), times)

    more = timed(iterations=3)
    seconds = few + max(0.0, more - few) / 2 * (iterations - 1)
    interval = getattr(options, "interval", 1)
    if interval > 2 and iterations > interval:  # clusters are found at the first step, and again
        again = max(0.0, timed(iterations=3, interval=1) - more) / 2
        seconds += again * (iterations // interval)
    return seconds


def _seconds(work: Callable[[], object], times: int = 2) -> float:
    """Return the shortest of some times: the first holds what is done only once."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)
