"""Sets of several sizes guide each other while they are matched to the same images (MIBDC)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.condenser import Images
from fedistill.distillers.base import thinned
from fedistill.losses.bottleneck import Mixture, MixtureOptions
from fedistill.matching_options import MatchingOptions
from fedistill.reference import RealBatches, Reference
from fedistill.rules import at_least, below_one, check

_AVERAGE = 0.05  # how fast the mean loss of the matching is followed


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(MixtureOptions):
    """Options of the guidance beside those of the mixture.

    Attributes:
        weight: of L_mix, in units of the running mean of the matching's loss; 0: no guidance.
        samples: views of each class and set in every estimate.
        warmup: share of the steps before it begins.
    """

    weight: float = 1.0
    samples: int = 8
    warmup: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check(at_least(self, 0, "weight"), at_least(self, 1, "samples"), below_one(self, "warmup"))


class MixtureGuide:
    """Adds the gradient of -weight * L_mix to every set; keeps what was estimated.

    Args:
        options: of the guidance.
        matching: of the loop.
        reference: what the sets are matched to.
        sizes: IPC of each set, in rising order.
        fixed: sets that guide and are not moved: the largest ones.
    """

    def __init__(
        self,
        options: GuidanceOptions,
        matching: MatchingOptions,
        reference: Reference,
        sizes: Sequence[int],
        fixed: Sequence[Images] = (),
    ) -> None:
        self._fixed = fixed
        self._options = options
        self._matching = matching
        self._stream = reference.stream("guidance")
        self._mixture = Mixture(
            options,
            reference.spec.num_classes,
            sizes,
            reference.stream("critics"),
            reference.device,
        )
        self._mean_loss: Tensor | None = None
        self._step = 0
        self._steps: list[int] = []
        self._estimates: dict[str, list[Tensor]] = {}

    def restart(self) -> None:
        """Forget the averages of the network before."""
        self._mixture.forget()

    def add(
        self, network: nn.Module, sets: Sequence[Images], batches: RealBatches, loss: Tensor
    ) -> None:
        """Add to the gradient of the images of each set."""
        step, self._step = self._step, self._step + 1
        mean = self._mean_loss
        self._mean_loss = loss if mean is None else torch.lerp(mean, loss, _AVERAGE)
        if self._options.weight == 0 or step < self._options.warmup * self._matching.iterations:
            return
        # One class alone carries no information: only what all sets hold is compared.
        everyone = [*sets, *self._fixed]
        labels = [n for n in sets[0].labels if all(own.counts[n] for own in everyone)]
        if len(labels) < 2:
            return
        rows = torch.tensor(labels).repeat_interleave(self._options.samples)
        with torch.no_grad():
            real = network(torch.cat([self._some(batches.of(label)) for label in labels]))
        outputs = [network(self._views(own, labels)) for own in everyone]
        reward = self._mixture(real, outputs, rows.to(real.device))
        slopes = torch.autograd.grad(reward, [own.pixels for own in sets])
        for own, slope in zip(sets, slopes, strict=True):
            # As in the matching: the learning rate is that of one image.
            counts = torch.tensor(own.counts).repeat_interleave(torch.tensor(own.counts))
            per_image = counts.to(slope.device)[:, None, None, None] * slope
            own.add_gradient(-self._options.weight * self._mean_loss * per_image)
        self._steps.append(step)
        for name, value in self._mixture.estimates.items():
            self._estimates.setdefault(name, []).append(value)

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Return every estimate over the steps, in nats: `information/real-10`, say."""
        return {
            f"information/{name}": thinned(self._steps, torch.stack(values))
            for name, values in self._estimates.items()
        }

    def _some(self, images: Tensor) -> Tensor:
        chosen = torch.randint(len(images), (self._options.samples,), generator=self._stream)
        return images[chosen.to(images.device)]

    def _views(self, own: Images, labels: Sequence[int]) -> Tensor:
        """Return `samples` random views of each class, drawn with replacement."""
        tiles = self._matching.tiles
        parts = []
        for label in labels:
            images = own.pixels[own.of(label)]
            number = len(images) * tiles**2
            chosen = torch.randint(number, (self._options.samples,), generator=self._stream)
            parts.append(mosaic.expand_some(images, tiles, chosen))
        return torch.cat(parts)
