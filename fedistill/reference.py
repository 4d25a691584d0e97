"""What sets are matched to: real images, which of them, and the networks trained on them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import crops
from fedistill.clusters import representatives
from fedistill.crops import ViewOptions
from fedistill.images import DataSpec, ImageSet
from fedistill.matching_options import MatchingOptions
from fedistill.models import build
from fedistill.models.features import features_of
from fedistill.seeding import derive_seed, generator

# Of the authors' code: of the networks that gradients are taken of.
_NETWORK_MOMENTUM, _NETWORK_WEIGHT_DECAY = 0.9, 5e-4


Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What sets are matched to, and where that is done.

    Attributes:
        images: with hard labels; every class that a set holds.
        spec: of the data set.
        seed: of the experiment.
        path: stage and ids; enters every seed.
        device: where to work.
        ask: draws who answers next; the answers, probabilities [B, num_classes] for normalised
            views [B, C, H, W], are what the networks are trained on. None: the hard labels are.
        soft: whether these are what gradients are taken of too, on both sides.
    """

    images: ImageSet
    spec: DataSpec
    seed: int
    path: tuple[str | int, ...]
    device: torch.device
    ask: Callable[[], Answer] | None = None
    soft: bool = False

    def stream(self, *name: str | int) -> torch.Generator:
        """Return a generator for one purpose."""
        return generator(self.seed, *self.path, *name)

    def streams(self, *name: str | int) -> list[torch.Generator]:
        """Return a generator for each class: what it draws does not hang on the other classes."""
        return [self.stream(*name, label) for label in range(self.spec.num_classes)]


class RealBatches:
    """The real images of each class that the next steps match.

    Args:
        options: of the loop.
        reference: holds them.
        name: enters the seeds.
    """

    def __init__(
        self, options: MatchingOptions, reference: Reference, name: str = "real batches"
    ) -> None:
        self._options = options
        self._reference = reference
        self.pixels = reference.images.images.to(reference.device)
        labels = reference.images.labels
        self._held = [
            (labels == label).nonzero()[:, 0] for label in range(reference.spec.num_classes)
        ]
        self._name = name
        self._streams = reference.streams(name)
        self._chosen: dict[int, Tensor] = {}
        self._rounds = 0

    def choose(self, network: nn.Module, labels: Sequence[int]) -> None:
        """Choose anew for some classes, by the features that a network has of them now."""
        if self._options.choice == "random":
            return
        self._rounds += 1
        for label in labels:
            chosen = self.clustered(network, label, self._options.batch_real)
            self._chosen[label] = chosen.to(self.pixels.device)

    def clustered(self, network: nn.Module, label: int, count: int) -> Tensor:
        """Return up to `count` images of a class that stand for it: indices, int64 [B]."""
        most = self._options.candidates
        among = self.shuffled(label)[: None if most is None else max(count, most)]
        if count >= len(among):
            return among
        reference = self._reference
        images = reference.images.images[among]
        features = features_of(network, images, reference.spec, torch.float32)
        path = (*reference.path, self._name, "clusters", self._rounds, label)
        return among[representatives(features, count, derive_seed(reference.seed, *path))]

    def shuffled(self, label: int) -> Tensor:
        """Return all images of a class in random order: indices into the reference, int64 [n]."""
        held = self._held[label]
        return held[torch.randperm(len(held), generator=self._streams[label])]

    def of(self, label: int) -> Tensor:
        """Return the chosen images of a class, normalised, [B, C, H, W].

        Random ones are drawn anew each time.
        """
        if self._options.choice == "random":
            chosen = self.shuffled(label)[: self._options.batch_real].to(self.pixels.device)
        else:
            chosen = self._chosen[label]
        return self._reference.spec.normalise(self.pixels[chosen])

    def some(self, label: int, count: int, stream: torch.Generator) -> Tensor:
        """Return random images of a class, with replacement, normalised, [count, C, H, W]."""
        held = self._held[label]
        chosen = held[torch.randint(len(held), (count,), generator=stream)]
        return self._reference.spec.normalise(self.pixels[chosen.to(self.pixels.device)])


class Learner:
    """A network on its way through training: what it is now decides which gradients match."""

    def __init__(self, options: MatchingOptions, reference: Reference, number: int) -> None:
        self._options = options
        self._reference = reference
        self.module = build(
            options.network, reference.spec, reference.seed, *reference.path, "network", number
        ).to(reference.device)
        self._optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=options.network_lr,
            momentum=_NETWORK_MOMENTUM,
            weight_decay=_NETWORK_WEIGHT_DECAY,
        )
        self._stream = reference.stream("network", number, "batches")

    def learn(self, batches: RealBatches) -> None:
        """Train it on some real images."""
        self.module.train()
        for index in self._batches():
            views, targets = self._seen(index, batches.pixels)
            loss = F.cross_entropy(
                self.module(views.contiguous(memory_format=torch.channels_last)), targets
            )
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _batches(self) -> Iterator[Tensor]:
        count = min(self._options.network_images, len(self._reference.images))
        if count:
            order = torch.randperm(len(self._reference.images), generator=self._stream)[:count]
            yield from order.split(self._options.network_batch_size)

    def _seen(self, index: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of real images, and what they are."""
        reference, spec = self._reference, self._reference.spec
        mixed = self._options.network_mix
        options = ViewOptions(
            shift=max(1, spec.size // 8),
            flip=spec.flip,
            mix="cutmix" if mixed else "none",
            mix_probability=mixed,
        )
        drawn = crops.draw(len(index), spec.size, options, self._stream)
        images = spec.normalise(pixels[index.to(pixels.device)])
        everyone = torch.arange(len(index))
        views = crops.render(images, drawn, everyone, spec.outside(reference.device))
        if reference.ask is not None:
            return views, reference.ask()(views)
        targets = F.one_hot(reference.images.labels[index], spec.num_classes).float()
        if drawn.partner is not None:
            targets = drawn.own_share * targets + (1 - drawn.own_share) * targets[drawn.partner]
        return views, targets.to(reference.device)
