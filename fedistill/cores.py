"""The cores that this process may use, and how many threads it uses."""

import os


def usable_cores() -> int:
    """Count the cores that the system gives this process: `taskset` and batch schedulers say."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(cpus: int | None = None) -> None:
    """Use this many threads, never more than there are usable cores; None: one for each of them.

    Sums over threads are added in another order when the number of threads changes, so it is set
    here and not left to the surroundings: a simulation and a local run then agree bit for bit.
    """
    import torch  # who starts a simulation counts cores without it

    cores = usable_cores()
    torch.set_num_threads(cores if cpus is None else max(1, min(cpus, cores)))
