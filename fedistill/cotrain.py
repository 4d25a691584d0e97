"""MIB on the server: the sets of several sizes are trained again, side by side, before relabelling.

MIBDC (see `distillers/mibdc.py`) needs real images, and the server has none. What stands in for
them is its *reference*:

    largest   the largest integrated set, which stays as it is
    union     every image that the clients sent, of all sizes; the largest set stays as it is
    public    a data set that the config names, with the same classes; all sets are trained

Synthetic images say little by their hard labels (a student on DB-SRe2L's images of MNIST: 75 %
where the teachers' answers bring it to 97 %, experiments/RESULTS.md). So networks are trained on
the answers of random teachers to views of the reference, and with `targets: soft` the gradients
that are matched are those of a cross-entropy with such answers too, on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedistill import data
from fedistill.condenser import Condenser, Images
from fedistill.config import STRICT, DataConfig
from fedistill.distillers.base import thinned
from fedistill.errors import ConfigError
from fedistill.guidance import GuidanceOptions, MixtureGuide
from fedistill.images import DataSpec, ImageSet
from fedistill.matching_options import MatchingOptions
from fedistill.reference import Reference
from fedistill.rules import check
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.shares import Share

Curves = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True, kw_only=True)
class MIB(MatchingOptions, GuidanceOptions):
    """Options beside those of the loop and of the guidance.

    Attributes:
        reference: `largest`, `union` or `public`.
        public: of `public`: a data set as `data.name` names them; its training split is used.
        targets: what gradients are taken of: `hard` labels, or `soft` answers of teachers.
        tiles: as in the images that the clients made; 1: they are no mosaics.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    reference: Literal["largest", "union", "public"] = "largest"
    public: str | None = None
    targets: Literal["hard", "soft"] = "soft"
    tiles: int = 1

    def __post_init__(self) -> None:
        MatchingOptions.__post_init__(self)
        GuidanceOptions.__post_init__(self)
        check(
            (
                (self.reference == "public") == (self.public is not None),
                "reference is "
                f"{self.reference} and public is {self.public!r}; accepted: reference: public with "
                "the name of a data set, or neither",
            ),
        )

    def check(self, sizes: Sequence[int], tiles: int, spec: DataSpec, seed: int) -> None:
        """Refuse sets that cannot be trained together, and a public data set that does not fit.

        Args:
            sizes: IPC of the sets, in rising order.
            tiles: a side of the images that the clients make.
            spec: of their data.
            seed: of the experiment.

        Raises:
            ConfigError: what is accepted.
        """
        if self.reference != "public" and len(sizes) < 2:
            raise ConfigError(
                f"cotrain.reference is {self.reference} and distill.ipc is {list(sizes)}: the "
                "largest set is what the others are trained on, and there are no others; accepted: "
                "two or more sizes, or reference: public with a data set in `public`"
            )
        if spec.num_classes < 2 and self.weight:
            raise ConfigError(
                f"cotrain.weight is {self.weight:g}, and {spec.name} has one class, "
                f"'{spec.class_names[0]}': mutual information between sets is information about "
                "the class, and there is none; accepted: weight 0, or more classes"
            )
        if self.tiles not in (1, tiles):
            accepted = "1" if tiles == 1 else f"1 or {tiles}"
            raise ConfigError(
                f"cotrain.tiles is {self.tiles}, and the images that the clients make have "
                f"{tiles} x {tiles} tiles; accepted: {accepted}"
            )
        if self.public is not None:
            self.public_images(spec, seed)

    def public_images(self, spec: DataSpec, seed: int) -> ImageSet | None:
        """Load the training split of the public data set, if there is to be one.

        Raises:
            ConfigError: other classes, or images of another shape.
        """
        if self.public is None:
            return None
        loaded = data.load(DataConfig(name=self.public, size=spec.size), seed)
        found = loaded.spec
        if found.class_names != spec.class_names or found.channels != spec.channels:
            raise ConfigError(
                f"cotrain.public is {self.public}, which has {_kind(found)}; "
                f"accepted: {_kind(spec)}"
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
) -> tuple[dict[int, SyntheticSet], Curves]:
    """Train the integrated sets again.

    Args:
        options: see `MIB`.
        sets: by IPC, in rising order, without soft labels.
        shares: what the clients sent, for `union`.
        teachers: by partition id, in eval mode.
        seed: of the experiment.
        device: where to work.
        report: called with steps done and steps in all.

    Returns:
        The sets, and curves by name: the loss of each set's matching, the information between.
    """
    spec = next(iter(sets.values())).spec
    reference = Reference(
        images=_reference(options, sets, shares, seed),
        spec=spec,
        seed=seed,
        path=("cotrain",),
        device=device,
        answer=_Teachers(teachers, seed),
        soft=options.targets == "soft",
    )
    own = {ipc: _images(options, synthetic, device) for ipc, synthetic in sets.items()}
    fixed = [] if options.reference == "public" else [own[max(own)]]
    moved = {ipc: images for ipc, images in own.items() if images not in fixed}
    guide = MixtureGuide(options, options, reference, list(own), fixed)
    losses: list[Tensor] = []

    def tell(found: Tensor) -> None:
        losses.append(found)
        report(len(losses), options.iterations)

    Condenser(options, reference, list(moved.values()), guide=guide).run(tell)
    curves = guide.curves()
    for number, ipc in enumerate(moved if losses else ()):
        values = torch.stack(losses)[:, number]
        curves[f"matching/ipc-{ipc}"] = thinned(range(len(losses)), values)
    refined = {
        ipc: replace(sets[ipc], images=spec.to_uint8(images.pixels.detach()).cpu())
        for ipc, images in moved.items()
    }
    return {ipc: refined.get(ipc, synthetic) for ipc, synthetic in sets.items()}, curves


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
        return sets[max(sets)].as_image_set()
    labels = [
        torch.repeat_interleave(torch.arange(len(share.counts)), torch.tensor(share.counts))
        for share in shares
    ]
    return ImageSet(
        torch.cat([share.images for share in shares]), torch.cat(labels) % spec.num_classes
    )


def _images(options: MIB, synthetic: SyntheticSet, device: torch.device) -> Images:
    start = synthetic.spec.normalise(synthetic.images)
    counts = synthetic.as_image_set().histogram(synthetic.spec.num_classes)
    return Images(start, counts, options, device)


class _Teachers:
    """Answers of a random client's teacher for every batch of views."""

    def __init__(self, teachers: Mapping[int, nn.Module], seed: int) -> None:
        self._teachers = [teacher for _, teacher in sorted(teachers.items())]
        self._stream = generator(seed, "cotrain", "teachers")

    @torch.no_grad()
    def __call__(self, views: Tensor) -> Tensor:
        chosen = int(torch.randint(len(self._teachers), (), generator=self._stream))
        logits: Tensor = self._teachers[chosen](views.contiguous(memory_format=torch.channels_last))
        return logits.float().softmax(1)


def _kind(spec: DataSpec) -> str:
    names = ", ".join(spec.class_names[:3])
    return f"{spec.num_classes} classes ({names}, ...) in {spec.channels} channel(s)"
