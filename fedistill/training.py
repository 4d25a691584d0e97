"""What every network is trained and tested with: precision, learning-rate curves, accuracy."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedistill.errors import ConfigError
from fedistill.images import DataSpec, ImageSet
from fedistill.seeding import global_seed

T = TypeVar("T")


def side_by_side(jobs: Iterable[Callable[[], T]], device: torch.device) -> Iterator[T]:
    """Run independent jobs, on a CPU one for each core, each with one thread.

    A small network gains more from a core of its own than from sharing two: twice the images a
    second (experiments/LOG.md). Results come in the order of the jobs, each when it and those
    before it are there; nothing runs before the first is asked for. Jobs may be made one by one,
    by a generator: the next is made while others run, one more than there are cores.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from (job() for job in jobs)
        return

    def alone(job: Callable[[], T]) -> T:
        torch.set_num_threads(1)
        return job()

    free = threading.Semaphore(threads)
    running: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            free.acquire()
            if any(it.done() and it.exception() for it in running):
                break
            running.append(pool.submit(alone, job))
            running[-1].add_done_callback(lambda _: free.release())
            while running and running[0].done():
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def device_for(gpus: float) -> torch.device:
    """Return the device of a worker that was given a share of a GPU, or none.

    On a GPU, convolutions are made to repeat bit for bit, and float32 to mean float32.
    """
    if gpus == 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    _make_repeatable()
    return torch.device("cuda")


def device_named(name: str) -> torch.device:
    """Return the device `cpu`, `cuda` or `cuda:1`, made ready as `device_for` does.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ConfigError(
            f"device is '{name}', and torch finds {count} GPUs here; accepted: cpu"
            + "".join(f", cuda:{number}" for number in range(count))
        )
    _make_repeatable()
    return device


def _make_repeatable() -> None:
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that convolutions run in.

    "auto" is bfloat16 where there are instructions for it (GPUs since Ampere; CPUs with
    AVX512-BF16, which all with AMX have too: 1.5 to 2 times faster, experiments/LOG.md), else
    float32: without them bfloat16 is emulated and slower.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run the convolutions of a block in `dtype`; weights and statistics stay float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=True)


def seeded(model: nn.Module, seed: int, *path: str | int) -> AbstractContextManager[object]:
    """Seed torch's global generator for the training of a network that draws from it.

    Dropout and stochastic depth do. For all others nothing is done, since the block is entered
    by one thread at a time.
    """
    draws = any(
        "Dropout" in type(module).__name__ or type(module).__name__ == "StochasticDepth"
        for module in model.modules()
    )
    return global_seed(seed, *path, "dropout") if draws else nullcontext()


def learning_rate_factor(schedule: str, done: float, zeta: float = 2.0) -> float:
    """Factor of the learning rate after a share `done` (0 to 1) of the training.

    cosine      ends at 0
    half_cosine ends at one half (RDED)
    smoothing   (1 + cos(pi t / zeta)) / 2: EDC; with zeta 2 the same as half_cosine
    ssrs        the same for five sixths of the training, then straight to 0 from a sixth of what
                is left (EDC's code: it drops there)
    multistep   halves at 0.8, 0.9 and 0.95 (EDC, CIFAR-10)
    two_steps   a fifth at 2/3 and again at 5/6 (IDC, DREAM)
    constant    1
    """
    if schedule in ("smoothing", "ssrs", "cosine", "half_cosine"):
        length = {"cosine": 1.0, "half_cosine": 2.0}.get(schedule, zeta)
        if schedule == "ssrs" and done > 5 / 6:
            return (1 + math.cos(math.pi * 5 / 6 / length)) / 2 * (1 - done)
        return (1 + math.cos(math.pi * done / length)) / 2
    if schedule == "multistep":
        return 0.5 ** sum(done >= step for step in (0.8, 0.9, 0.95))
    if schedule == "two_steps":
        return 0.2 ** sum(done >= step for step in (2 / 3, 5 / 6))
    assert schedule == "constant", schedule
    return 1.0


def warmup_then_decay(warmup: float, done: float) -> float:
    """Linear from 0 to 1 over the share `warmup`, then linear to 0 (Page 2018, airbench)."""
    if done < warmup:
        return done / warmup
    return (1 - done) / (1 - warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the weights and buffers of a state, which may be an average of several.

    Integers, such as the number of batches that a BatchNorm has seen, are rounded: a plain load
    would cut 2.9999 down to 2.

    Raises:
        RuntimeError: the state is not one of this network.
    """
    own = model.state_dict()
    whole = {name for name, tensor in own.items() if not tensor.is_floating_point()}
    model.load_state_dict(
        {name: tensor.round() if name in whole and tensor.is_floating_point() else tensor
         for name, tensor in state.items()}
    )  # fmt: skip


def forward_batch(device: torch.device) -> int:
    """Return how many images a network is shown at once where nothing is learnt.

    The feature maps of 500 do not fit into the caches of a CPU, and are given back to the system
    and zeroed again for each layer: with ConvNets 1.6 to 2.8 times the seconds of 50
    (experiments/LOG.md). Another number rounds differently.
    """
    return 50 if device.type == "cpu" else 500


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, spec: DataSpec, dtype: torch.dtype) -> Tensor:
    """Return the logits of a network in eval mode for uint8 images, float32 [M, C]."""
    device = next(model.parameters()).device
    model.eval()
    parts = []
    for batch in images.split(forward_batch(device)):
        inputs = spec.normalise(batch.to(device)).contiguous(memory_format=torch.channels_last)
        with autocast(device, dtype):
            parts.append(model(inputs).float())
    return torch.cat(parts)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Accuracy in percent."""
    return 100 * (logits.argmax(1).cpu() == labels.cpu()).float().mean().item()


def accuracy(model: nn.Module, data: ImageSet, spec: DataSpec, dtype: torch.dtype) -> float:
    """Top-1 accuracy of a network on a whole split, in percent."""
    return top1(logits_of(model, data.images, spec, dtype), data.labels)
