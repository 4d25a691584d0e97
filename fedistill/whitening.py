"""ZCA whitening: pixels without correlations, as close to the picture as that allows.

Bell and Sejnowski, "The independent components of natural scenes are edge filters" (1997); with
the added constant of Kornia's `ZCAWhitening`, which MTT and APM train in:

    z = (x - mean) W,   W = (covariance + eps I)^(-1/2),   x in [0, 1]^D,   D = C H W.

W is symmetric, [D, D]: 38 MB for CIFAR. Mean and W tell mean and covariance of the real images
they were fitted on, and travel with whatever they whiten.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

EPS = 0.1  # added to the eigenvalues of the covariance (MTT, APM)
LARGEST = 8192  # most numbers in an image: W then takes 268 MB, and minutes to fit

# Pixels less 128 are at most 128 in size, and 1024 of their products at most 2^24 together:
# float32 holds every such sum exactly.
_CENTRE, _CHUNK = 128, 1024


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted whitening of whole images.

    Attributes:
        mean: of the images, in [0, 1], float32 [D].
        matrix: W, float32 [D, D], symmetric.
    """

    mean: Tensor = field(repr=False)
    matrix: Tensor = field(repr=False)
    _copies: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        size = self.mean.numel()
        for name, tensor, shape in (
            ("mean", self.mean, (size,)),
            ("matrix", self.matrix, (size, size)),
        ):
            if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
                raise ValueError(
                    f"the whitening's {name} is {tensor.dtype} {tuple(tensor.shape)}; "
                    f"accepted: torch.float32 {shape}"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"the whitening's {name} holds values that are not finite")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Whitening):
            return NotImplemented
        return torch.equal(self.mean, other.mean) and torch.equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash(tuple(self.mean.tolist()))

    @cached_property
    def inverse(self) -> Tensor:
        """Of W, float32 [D, D]; made when it is first asked for."""
        with _one_thread():
            found: Tensor = torch.linalg.inv(self.matrix)
        return found

    def apply(self, images: Tensor) -> Tensor:
        """Whiten float32 images [..., C, H, W] in [0, 1]."""
        mean, matrix = self._at("mean", images.device), self._at("matrix", images.device)
        return _product(images.flatten(-3) - mean, matrix).view(images.shape)

    def undo(self, images: Tensor) -> Tensor:
        """Turn whitened images [..., C, H, W] back to [0, 1], or beyond where no picture is."""
        mean, inverse = self._at("mean", images.device), self._at("inverse", images.device)
        return (_product(images.flatten(-3), inverse) + mean).view(images.shape)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest that each number of a picture can become, [D] each."""
        black, white = (
            (corner - self.mean)[:, None] * self.matrix for corner in (0.0, 1.0)
        )  # what each pixel adds to each number
        return torch.minimum(black, white).sum(0), torch.maximum(black, white).sum(0)

    def _at(self, name: str, device: torch.device) -> Tensor:
        """Return a tensor on a device; kept there, since the copy takes longer than its use."""
        if (name, device) not in self._copies:
            self._copies[name, device] = getattr(self, name).to(device)
        return self._copies[name, device]


def fit(images: Tensor, eps: float = EPS) -> Whitening:
    """Fit a whitening to images.

    The same images in any order give the same bytes with any number of threads: the sums are
    exact, the rest is float64 in one thread.

    Args:
        images: uint8 [M, C, H, W], at least one.
        eps: added to the eigenvalues; with 0 the covariance becomes the identity.
    """
    pixels = images.flatten(1)
    count, size = pixels.shape
    total = torch.zeros(size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    with _one_thread():
        for chunk in pixels.split(_CHUNK):
            centred = chunk.float() - _CENTRE
            total += centred.sum(0)
            products += centred.T @ centred
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / max(1, count - 1) / 255**2
        values, vectors = torch.linalg.eigh(covariance)
        # Rounding may take an eigenvalue of 0 below it.
        matrix = (vectors * (values.clamp(min=0) + eps).rsqrt()) @ vectors.T
    return Whitening(((mean + _CENTRE) / 255).float(), ((matrix + matrix.T) / 2).float())


def _product(vectors: Tensor, matrix: Tensor) -> Tensor:
    # In float32 also inside a block that lets networks run in bfloat16: this is data, and the way
    # back has to find the same pixels.
    with torch.autocast(vectors.device.type, enabled=False):
        return vectors @ matrix


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: with another number LAPACK rounds differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
