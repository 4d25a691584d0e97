"""The only source of randomness: every generator derives from (seed, stage, ids...).

A path such as `(seed, "recover", partition_id, batch)` is hashed, so that streams are
independent of each other, of the order in which clients answer, and of how many
numbers another stage has drawn. Python's `hash` would not do: it changes between processes.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """Hash a seed and a path to a 63-bit seed.

    Args:
        seed: the user's seed.
        *path: stage name and ids, for example `"recover", partition_id`.
    """
    text = "/".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU generator for one stage.

    On the CPU also when the work is on a GPU: the numbers are then the same on both.
    """
    return torch.Generator().manual_seed(derive_seed(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator for one stage."""
    return np.random.default_rng(derive_seed(seed, *path))


_GLOBAL = threading.RLock()


@contextmanager
def global_seed(seed: int, *path: str | int) -> Iterator[None]:
    """Seed torch's global generator inside the block, and restore it afterwards.

    For code that takes no generator: layer initialisation, dropout. One thread at a time: there
    is one global generator, and students train side by side.
    """
    with _GLOBAL, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, *path))
        yield
