"""How fast every stage is here, and how much of what the machine can do it uses.

Each stage runs its own code on random images of MNIST's shape with the quickstart's ConvNet; every
distiller is a stage, with its default options and few iterations, timed from the end of the first
to the end of the last: what a method does once, such as a pass over the shard, is no part of it.
Floating-point operations of convolutions and matrix products are counted with torch's formulas; the
peak is the best matrix product measured in the same precision with the same number of threads, in
the same process.

What an image costs is counted, not timed: the passes of images through the teacher's first
convolution, without and with a gradient, and all operations. They are counted for three iterations,
and continued in a straight line to the method's own number.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedistill import protocols, registry, results
from fedistill.config import ModelConfig, RelabelConfig, StudentConfig, TeacherConfig
from fedistill.cores import set_threads
from fedistill.distillers.base import Distiller, Task
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.relabel import relabel, view_options
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.student import train
from fedistill.teacher import freeze, squeeze
from fedistill.training import device_for, resolve_precision

_REPEATS = 5
_VIEWS = 10
_LIMIT_S = 2.0  # a stage is not repeated for longer than this
_RUN_S = 0.3  # as many iterations of a distiller as fit, at most _STEPS
_STEPS = 20
_TRIAL = 3  # iterations that tell how long one takes
_SPEC = DataSpec(
    name="benchmark",
    class_names=tuple("0123456789"),
    channels=1,
    size=28,
    mean=(0.13,),
    std=(0.31,),
    flip=False,
)
_MODEL = ModelConfig(name="convnet", width=32)


Lap = Callable[[], None]  # tells that what is measured begins, goes on or ends


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One thing to measure.

    Attributes:
        name: for the table.
        unit: of the work.
        count: units between the first and the last lap of one call.
        work: the call; it tells its laps.
        cost: of an image, where the stage makes images.
    """

    name: str
    unit: str
    count: int
    work: Callable[[Lap], object]
    cost: dict[str, float] | None = None


def measure() -> dict[str, Any]:
    """Measure all stages; medians of up to five runs after a warm-up.

    Returns:
        Peak and, for each stage, work per second, GFLOP/s, the share of the peak and, for a
        distiller, what an image costs.
    """
    set_threads(1)
    device = device_for(1.0)
    dtype = resolve_precision("auto", device)
    peaks = {kind: _peak(device, kind) for kind in {dtype, torch.float32}}
    stages = {}
    for stage in _stages(device, dtype):
        # Counted first: that warms up what is timed then.
        gflop = {kind: count / 1e9 for kind, count in _operations(stage.work).items()}
        seconds = _median_seconds(stage.work, device)
        for kind in gflop.keys() - peaks.keys():
            peaks[kind] = _peak(device, kind)
        stages[stage.name] = {
            "unit": stage.unit,
            "per_second": stage.count / seconds,
            "gflops": sum(gflop.values()) / seconds,
            "precision": _name(max(gflop, key=gflop.__getitem__, default=torch.float32)),
            "share_of_peak": sum(it / peaks[kind] for kind, it in gflop.items()) / seconds,
            "cost": stage.cost,
        }
    return {
        "hardware": results.hardware(),
        "threads": torch.get_num_threads(),
        "precision": _name(dtype),
        "peak_gflops": peaks[dtype],
        "peaks_gflops": {_name(kind): value for kind, value in peaks.items()},
        "stages": stages,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stages(device: torch.device, dtype: torch.dtype) -> Iterator[_Stage]:
    stream = generator(0, "benchmark")
    shape = (1000, _SPEC.channels, _SPEC.size, _SPEC.size)
    images = torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)
    real = ImageSet(images, torch.arange(1000) % 10)
    synthetic = SyntheticSet(
        spec=_SPEC,
        images=images[:100],
        hard_labels=torch.arange(100) % 10,
        clients=torch.zeros(100),
    )
    teacher = freeze(build(_MODEL, _SPEC, 0, "benchmark").to(device))
    student = StudentConfig(**{**protocols.student_keys("default"), "epochs": 10})
    views = RelabelConfig(**{**protocols.view_keys("default"), "name": "mix", "views": _VIEWS})
    where: dict[str, Any] = {"seed": 0, "device": device, "dtype": dtype}
    yield _Stage(
        name="squeeze",
        unit="real images",
        count=1000,
        work=_whole(lambda: squeeze(real, _SPEC, _MODEL, TeacherConfig(epochs=1), **where)),
    )
    task = Task(
        counts=[2] * 10,
        shard=real.select(torch.arange(500)),
        teachers=[teacher],
        models=[_MODEL],
        spec=_SPEC,
        partition_id=0,
        **where,
    )
    for name in registry.names("distillers"):
        yield _distiller_stage(name, registry.load("distillers", name)(), task)
    yield _Stage(
        name="relabel",
        unit="views",
        count=100 * _VIEWS,
        work=_whole(lambda: relabel(synthetic, {0: teacher}, views, **where)),
    )
    labelled = relabel(synthetic, {0: teacher}, views, **where)
    yield _Stage(
        name="student",
        unit="views",
        count=1000,
        work=_whole(
            lambda: train(labelled, _MODEL, student, view_options(views, _SPEC), number=0, **where)
        ),
    )


def _distiller_stage(name: str, part: Distiller, task: Task) -> _Stage:
    images, iterations = sum(task.counts), _iterations(part)
    if not iterations:
        work = _whole(partial(part.distill, task))
        cost = {key: value / images for key, value in _count(work, task).total.items()}
        return _Stage(name=f"recover/{name}", unit="images", count=images, work=work, cost=cost)
    trial = _count(_stepping(_short(part, _TRIAL), task), task)
    steps = max(1, min(_STEPS, int(_RUN_S / trial.seconds_per_lap)))
    return _Stage(
        name=f"recover/{name}",
        unit="images x steps",
        count=images * steps,
        work=_stepping(_short(part, steps + 1), task),
        # Of all iterations: those of the trial, and the others like its last ones.
        cost={
            key: (value + trial.per_lap[key] * (iterations - _TRIAL)) / images
            for key, value in trial.total.items()
        },
    )


def _iterations(part: Distiller) -> int | None:
    """Return how often a method steps, if it does: the option of that name."""
    found: int | None = getattr(part, "iterations", None)
    return found


def _short(part: Distiller, iterations: int) -> Distiller:
    """Return the same method with another number of steps."""
    return replace(part, iterations=iterations)  # type: ignore[type-var]


def _whole(work: Callable[[], object]) -> Callable[[Lap], object]:
    """Measure all of a call."""

    def measured(lap: Lap) -> None:
        lap()
        work()
        lap()

    return measured


def _stepping(part: Distiller, task: Task) -> Callable[[Lap], object]:
    """Measure a method from the end of its first iteration."""
    return lambda lap: part.distill(replace(task, report=lambda done, total, loss: lap()))


@dataclass(frozen=True)
class _Counted:
    """What a call took: `forward` and `forward_backward` passes and `gflop`; and how long.

    Attributes:
        total: from its beginning to its end.
        per_lap: between two laps.
        seconds_per_lap: the same.
    """

    total: dict[str, float]
    per_lap: dict[str, float]
    seconds_per_lap: float


def _count(work: Callable[[Lap], object], task: Task) -> _Counted:
    """Count what a call takes, and how much of it from one lap to the next."""
    laps: list[tuple[float, dict[str, float]]] = []
    with _passes(task.teachers[0]) as passes, _Operations() as operations:

        def now() -> dict[str, float]:
            return {**passes, "gflop": operations.by_dtype.total() / 1e9}

        work(lambda: laps.append((time.perf_counter(), now())))
        total = now()
    (begin, first), (end, last), further = laps[0], laps[-1], len(laps) - 1
    per_lap = {key: (last[key] - first[key]) / further for key in total}
    return _Counted(total, per_lap, (end - begin) / further)


@contextmanager
def _passes(network: nn.Module) -> Iterator[dict[str, int]]:
    """Count images at the first convolution: a pass that ends early, at some layer, counts too."""
    found = {"forward": 0, "forward_backward": 0}

    def note(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        found["forward_backward" if out.requires_grad else "forward"] += len(out)

    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    hook = first.register_forward_hook(note)
    try:
        yield found
    finally:
        hook.remove()


class _Operations(TorchDispatchMode):
    """Counts floating-point operations by precision.

    torch's own `FlopCounterMode` also follows modules with hooks that refuse some calls of
    `autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_dtype: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        out = func(*args, **options)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.by_dtype[args[0].dtype] += formula(*args, **options, out_val=out)
        return out


def _operations(work: Callable[[Lap], object]) -> dict[torch.dtype, float]:
    """Count the operations between the first and the last lap."""
    laps: list[Counter[torch.dtype]] = []
    with _Operations() as operations:
        work(lambda: laps.append(operations.by_dtype.copy()))
    return {kind: count - laps[0][kind] for kind, count in laps[-1].items()}


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of the best of a few square matrix products."""
    best = 0.0
    for size in (512, 1024, 2048):
        a = torch.randn(size, size, device=device).to(dtype)
        product = partial(torch.matmul, a, a)
        product()  # a warm-up
        seconds = _median_seconds(_whole(product), device)
        best = max(best, 2 * size**3 / seconds / 1e9)
    return best


def _median_seconds(work: Callable[[Lap], object], device: torch.device) -> float:
    def lap() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    times: list[float] = []
    found: list[float] = []
    limit = time.perf_counter() + _LIMIT_S
    while not found or (len(found) < _REPEATS and time.perf_counter() < limit):
        times.clear()
        work(lap)
        found.append(times[-1] - times[0])
    return statistics.median(found)
