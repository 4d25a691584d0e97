"""MIB on the server: the sets of several sizes are trained again, side by side, before relabelling.

MIBDC (see `distillers/mibdc.py`) needs real images, and the server has none. What stands in for
them is its *reference*:

    union     every image that the clients sent, of all sizes; the largest set stays as it is
    largest   the largest integrated set, which stays as it is
    public    a data set that the config names, with the same classes; all sets are trained

What the clients made to be seen tile by tile is seen so here too, on both sides: their images stand
for real ones as tiles, enlarged.

Synthetic images say little by their hard labels (a student on DB-SRe2L's images of MNIST: 75 %
where the teachers' answers bring it to 97 %, experiments/RESULTS.md). So networks are trained on
the answers of random teachers to views of the reference, and with `targets: soft` the gradients
that are matched are those of a cross-entropy with such answers too, on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedistill import data, mosaic, sources
from fedistill.answers import NOT_FINITE, LeftOut, warn_of
from fedistill.condenser import Condenser, Images
from fedistill.config import DEVICES, STRICT, Config, DataConfig
from fedistill.errors import ClientsFailed, ConfigError, DataError
from fedistill.guidance import GuidanceOptions, MixtureGuide
from fedistill.images import DataSpec, ImageSet
from fedistill.matching_options import MatchingOptions
from fedistill.models.build import require_network
from fedistill.reference import Answer, Reference
from fedistill.rules import Rule
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.shares import Share

Curves = dict[str, list[tuple[int, float]]]

_AT_ONCE = 1000  # mosaics that are cut up in one go: what bounds the memory of that


@dataclass(frozen=True, kw_only=True)
class MIB(MatchingOptions, GuidanceOptions):
    """Options beside those of the loop and of the guidance.

    With the defaults, chosen on held-out images of MNIST, small sets come out about as good as they
    went in; with larger steps they come out far worse (experiments/LOG.md).

    Attributes:
        reference: `union`, `largest` or `public`.
        public: of `public`: a data set as `data.name` names them; its training split is used.
        targets: what gradients are taken of: `hard` labels, or `soft` answers of teachers.
        tiles: a side of the images that the clients made, as students see them; 1: they are seen
            whole. None: as the config says (`for_tiles`).
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    reference: Literal["largest", "union", "public"] = "union"
    public: str | None = None
    targets: Literal["hard", "soft"] = "hard"
    lr: float = 0.0003
    iterations: int = 200
    tiles: int | None = None  # type: ignore[assignment]  # filled in before the loop reads it

    def rules(self) -> list[Rule]:
        """See `MatchingOptions`."""
        named = (self.reference == "public") == (self.public is not None)
        return [
            *MatchingOptions.rules(self),
            *GuidanceOptions.rules(self),
            (
                named,
                f"reference is {self.reference} and public is {self.public!r}; accepted: "
                "reference: public with the name of a data set, or neither",
            ),
        ]

    def for_tiles(self, tiles: int) -> "MIB":
        """Return it with the tiles that students see, if left out."""
        return self if self.tiles is not None else replace(self, tiles=tiles)

    def check(self, config: Config, tiles: int, spec: DataSpec) -> None:
        """Refuse sets that cannot be trained together, and a public data set that does not fit.

        Args:
            config: of the experiment; its sizes rise.
            tiles: a side of the images that the clients make.
            spec: of the clients' data.

        Raises:
            ConfigError: what is accepted.
            ModelError: the networks are too deep for the images.
        """
        require_network(self.network, spec, "cotrain.depth, networks of gradient matching")
        sizes = config.distill.ipc
        if self.reference != "public" and len(sizes) < 2:
            raise ConfigError(
                f"cotrain.reference is {self.reference} and distill.ipc is {list(sizes)}: the "
                "largest set is what the others are trained on, and there are no others; accepted: "
                "two or more sizes, or reference: public with a data set in `public`"
            )
        self.check_classes(spec, "cotrain")
        if self.tiles not in (None, 1, tiles):
            accepted = "1" if tiles == 1 else f"1 or {tiles}"
            raise ConfigError(
                f"cotrain.tiles is {self.tiles}, and the images that the clients make have "
                f"{tiles} x {tiles} tiles; accepted: {accepted}"
            )
        public = self.public_images(spec, config.seed)
        if public is not None and _same_data(str(self.public), config.data.name):
            raise ConfigError(
                f"cotrain.public is {self.public}, which is the data of the clients; accepted: "
                "other images of the same classes"
            )

    def public_images(self, spec: DataSpec, seed: int) -> ImageSet | None:
        """Load the training split of the public data set, if there is to be one.

        Raises:
            ConfigError: other classes, a class without images, or images of another shape.
        """
        if self.public is None:
            return None
        if self.public == DEVICES:
            raise ConfigError(
                f"cotrain.public is {DEVICES}, and what the devices have is not public; accepted: "
                "a data set, as data.name names one"
            )
        try:
            loaded = data.load(DataConfig(name=self.public, size=spec.size), seed)
        except DataError as error:
            raise ConfigError(f"cotrain.public, read as a data.name: {error}") from error
        found = loaded.spec
        if found.class_names != spec.class_names or found.channels != spec.channels:
            raise ConfigError(
                f"cotrain.public is {self.public}, which has {_kind(found, spec)}; "
                f"accepted: {_kind(spec, found)}"
            )
        missing = [
            name
            for name, count in zip(
                spec.class_names, loaded.train.histogram(spec.num_classes), strict=True
            )
            if not count
        ]
        if missing:
            raise ConfigError(
                f"cotrain.public is {self.public}, which has no image of class '{missing[0]}'; "
                "accepted: images of every class"
            )
        return loaded.train


def cotrain(
    options: MIB,
    sets: Mapping[int, SyntheticSet],
    shares: Sequence[Share],
    teachers: Mapping[int, nn.Module],
    *,
    seed: int,
    device: torch.device,
    report: Callable[[int, int], None] = lambda done, total: None,
    left_out: LeftOut = warn_of,
) -> tuple[dict[int, SyntheticSet], Curves]:
    """Train the integrated sets again.

    Args:
        options: see `MIB`; without `tiles` the images are no mosaics.
        sets: by IPC, in rising order, without soft labels.
        shares: what the clients sent, for `union`.
        teachers: by partition id, in eval mode.
        seed: of the experiment.
        device: where to work.
        report: called with steps done and steps in all.
        left_out: is told whose answers are not taken, and why.

    Returns:
        The sets, and curves by name: the loss of each set's matching, the information between.

    Raises:
        ClientsFailed: no teacher answers with finite numbers.
    """
    options = options.for_tiles(1)
    spec = next(iter(sets.values())).spec
    reference = Reference(
        images=_reference(options, sets, shares, seed),
        spec=spec,
        seed=seed,
        path=("cotrain",),
        device=device,
        ask=_Teachers(teachers, seed, left_out),
        soft=options.targets == "soft",
    )
    own = [_images(options, ipc, synthetic, reference) for ipc, synthetic in sets.items()]
    fixed = [] if options.reference == "public" else own[-1:]
    moved = own[: len(own) - len(fixed)]
    guide = MixtureGuide(options, options, reference, moved, fixed)
    loop = Condenser(options, reference, moved, guide=guide)
    steps = count(1)
    loop.run(lambda losses: report(next(steps), options.iterations))
    refined = {
        images.ipc: replace(sets[images.ipc], images=spec.to_uint8(images.pixels.detach()).cpu())
        for images in moved
    }
    return {**sets, **refined}, loop.curves


def _reference(
    options: MIB,
    sets: Mapping[int, SyntheticSet],
    shares: Sequence[Share],
    seed: int,
) -> ImageSet:
    spec = next(iter(sets.values())).spec
    public = options.public_images(spec, seed)
    if public is not None:
        return public
    if options.reference == "largest":
        return _as_seen(sets[max(sets)].as_image_set(), options.tiles, spec)
    labels = [
        torch.repeat_interleave(torch.arange(len(share.counts)), torch.tensor(share.counts))
        for share in shares
    ]
    sent = ImageSet(
        torch.cat([share.images for share in shares]), torch.cat(labels) % spec.num_classes
    )
    return _as_seen(sent, options.tiles, spec)


def _as_seen(images: ImageSet, tiles: int | None, spec: DataSpec) -> ImageSet:
    """Return the tiles of mosaics, enlarged, with the labels of their images.

    Enlarged as networks see them: a tile of a whitened mosaic is no tile that was whitened.
    """
    if tiles in (None, 1):
        return images

    def enlarged(part: Tensor) -> Tensor:
        if spec.zca is not None:
            return spec.to_uint8(mosaic.expand(spec.normalise(part), tiles))
        return mosaic.expand(part.float(), tiles).round().to(torch.uint8)

    parts = [enlarged(part) for part in images.images.split(_AT_ONCE)]
    return ImageSet(torch.cat(parts), images.labels.repeat_interleave(tiles**2))


def _images(options: MIB, ipc: int, synthetic: SyntheticSet, reference: Reference) -> Images:
    start = synthetic.spec.normalise(synthetic.images)
    counts = synthetic.as_image_set().histogram(synthetic.spec.num_classes)
    return Images(start, counts, ipc, options, reference)


def _same_data(first: str, second: str) -> bool:
    folders = [sources.local_folder(name) for name in (first, second)]
    if None not in folders:
        return folders[0] == folders[1]
    return sources.HUB_NAMES.get(first, first) == sources.HUB_NAMES.get(second, second)


class _Teachers:
    """Draws the client whose teacher answers next.

    One whose answer is not finite is drawn no more, and another answers in its place: a NaN would
    end up in the images.
    """

    def __init__(self, teachers: Mapping[int, nn.Module], seed: int, left_out: LeftOut) -> None:
        self._teachers = dict(sorted(teachers.items()))
        self._stream = generator(seed, "cotrain", "teachers")
        self._left_out = left_out

    def __call__(self) -> Answer:
        chosen = int(torch.randint(len(self._teachers), (), generator=self._stream))
        return partial(self._answer, [*self._teachers][chosen])

    @torch.no_grad()
    def _answer(self, client: int, views: Tensor) -> Tensor:
        if client in self._teachers:
            shown = views.contiguous(memory_format=torch.channels_last)
            answer: Tensor = self._teachers[client](shown).float().softmax(1)
            if bool(answer.isfinite().all()):
                return answer
            del self._teachers[client]
            self._left_out(client, NOT_FINITE)
        if not self._teachers:
            raise ClientsFailed(f"no client is left that answers; of each one {NOT_FINITE}")
        return self()(views)


def _kind(spec: DataSpec, other: DataSpec) -> str:
    """Describe images, with the first class that has another name than in other ones."""
    pairs = enumerate(zip(spec.class_names, other.class_names, strict=False))
    name = next((f" (number {n} is '{own}')" for n, (own, their) in pairs if own != their), "")
    return f"{spec.num_classes} classes{name} in {spec.channels} channel(s)"
