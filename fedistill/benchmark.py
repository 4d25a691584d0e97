"""How fast every stage is here, and how much of what the machine can do it uses.

Each stage runs its own code on random images of MNIST's shape with the quickstart's ConvNet.
Floating-point operations are counted by torch on one step; the peak is the best matrix product
measured in the same precision with the same number of threads, in the same process.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedistill import protocols, results
from fedistill.client import set_threads
from fedistill.config import ModelConfig, RelabelConfig, StudentConfig, TeacherConfig
from fedistill.distillers.base import Task
from fedistill.distillers.sre2l import SRe2L
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.relabel import relabel, view_options
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.student import train
from fedistill.teacher import freeze, squeeze
from fedistill.training import device_for, resolve_precision

_REPEATS = 5
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


def measure() -> dict[str, Any]:
    """Measure all stages; medians of five runs after a warm-up.

    Returns:
        Peak and, for each stage, work per second, GFLOP/s and the share of the peak.
    """
    set_threads(1)
    device = device_for(1.0)
    dtype = resolve_precision("auto", device)
    peaks = {kind: _peak(device, kind) for kind in {dtype, torch.float32}}
    stages = {}
    for name, unit, count, kind, work in _stages(device, dtype):
        with FlopCounterMode(display=False) as counter:
            work()
        seconds = _median_seconds(work, device)
        gflops = counter.get_total_flops() / seconds / 1e9
        stages[name] = {
            "unit": unit,
            "per_second": count / seconds,
            "gflops": gflops,
            "precision": str(kind).removeprefix("torch."),
            "share_of_peak": gflops / peaks[kind],
        }
    return {
        "hardware": results.hardware(),
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
        "peak_gflops": peaks[dtype],
        "peaks_gflops": {str(k).removeprefix("torch."): value for k, value in peaks.items()},
        "stages": stages,
    }


def _stages(
    device: torch.device, dtype: torch.dtype
) -> list[tuple[str, str, int, torch.dtype, Callable[[], object]]]:
    """Return name, unit, units of work in one call, precision, and the call, of each stage."""
    stream = generator(0, "benchmark")
    images = torch.randint(0, 256, (1000, 1, 28, 28), generator=stream, dtype=torch.uint8)
    real = ImageSet(images, torch.arange(1000) % 10)
    synthetic = SyntheticSet(
        spec=_SPEC,
        images=images[:100],
        hard_labels=torch.arange(100) % 10,
        clients=torch.zeros(100),
    )
    teacher = freeze(build(_MODEL, _SPEC, 0, "benchmark").to(device))
    task = Task(
        counts=[2] * 10,
        shard=real,
        teachers=[teacher],
        models=[_MODEL],
        spec=_SPEC,
        seed=0,
        partition_id=0,
        device=device,
        dtype=dtype,
    )
    student = replace(StudentConfig(), **protocols.student_keys("default"))
    views = replace(RelabelConfig(views=10), **protocols.view_keys("default"))
    labelled = relabel(synthetic, {0: teacher}, views, seed=0, device=device, dtype=dtype)
    steps = 20
    return [
        (
            "squeeze",
            "real images",
            1000,
            dtype,
            lambda: squeeze(
                real, _SPEC, _MODEL, TeacherConfig(epochs=1), seed=0, device=device, dtype=dtype
            ),
        ),
        (
            "recover",
            "images x steps",
            20 * steps,
            torch.float32,
            lambda: SRe2L(iterations=steps).distill(task),
        ),
        (
            "relabel",
            "views",
            100 * views.views,
            dtype,
            lambda: relabel(synthetic, {0: teacher}, views, seed=0, device=device, dtype=dtype),
        ),
        (
            "student",
            "views",
            1000,
            dtype,
            lambda: train(
                labelled,
                _MODEL,
                replace(student, epochs=10),
                view_options(views, _SPEC),
                seed=0,
                number=0,
                device=device,
                dtype=dtype,
            ),
        ),
    ]


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of the best of a few square matrix products."""
    best = 0.0
    for size in (512, 1024, 2048):
        a = torch.randn(size, size, device=device).to(dtype)
        seconds = _median_seconds(partial(torch.matmul, a, a), device)
        best = max(best, 2 * size**3 / seconds / 1e9)
    return best


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    found = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)
