"""What teachers say to views of a set: the same computation on the server and at home.

Each teacher is shown its own views in their order, in batches of one size, on one thread. So its
answers have the same bits whoever else is asked beside it, and wherever.

`prior_adjustment` is the post-hoc logit adjustment of Menon et al., "Long-tail learning via logit
adjustment" (ICLR 2021): a teacher that saw a class seldom, or never, does not vote it down.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedistill import crops
from fedistill.crops import ViewOptions, Views
from fedistill.images import DataSpec
from fedistill.sets import SoftLabels
from fedistill.training import autocast, forward_batch, side_by_side

LeftOut = Callable[[int, str], object]  # is told whose answers are not taken, and why
NOT_FINITE = "its teacher's answers are not all finite numbers"

_log = logging.getLogger(__name__)
_BATCH = 500  # views that are made at once


@dataclass(frozen=True)
class Sheet:
    """What is to be labelled: random views of the images of a set.

    Attributes:
        images: uint8 [M, C, H, W].
        views: how many of every image.
        seed: replays the views together with `options`.
        options: the distribution of the views.
    """

    images: Tensor
    views: int
    seed: int
    options: ViewOptions

    def drawn(self) -> list[Views]:
        """Draw every view of all images: as students will."""
        labels = SoftLabels(torch.empty(self.views, len(self.images), 0), self.seed, self.options)
        return [labels.views(view, self.images.shape[-1]) for view in range(self.views)]


@dataclass(frozen=True)
class Labeller:
    """A teacher, which views it is asked for, and what is taken from its logits.

    Attributes:
        teacher: in eval mode.
        mine: bool [views, M].
        prior: see `prior_adjustment`, [num_classes]; None: nothing.
    """

    teacher: nn.Module
    mine: Tensor
    prior: Tensor | None = None


def warn_of(client: int, why: str) -> None:
    """Say in the log whose answers are not taken."""
    _log.warning("client %s has its answers left out: %s", client, why)


def prior_adjustment(histogram: Sequence[int]) -> Tensor:
    """Return what is taken from the logits of a teacher that was trained on such a shard.

    Menon et al. (ICLR 2021), the post-hoc form with tau 1: the log of the class prior. Here the
    prior has Laplace smoothing, (n_c + 1) / (n + C), since a shard may lack a class, and the log
    is centred, so that it has mean 0 over the classes. Exactly 0 for equal counts.

    Args:
        histogram: images of each class, [num_classes].

    Returns:
        Float32 [num_classes].
    """
    # The denominator is the same for all classes: centring takes it out.
    log_prior = torch.tensor([*histogram], dtype=torch.float64).add(1).log()
    above_first = log_prior - log_prior[0]  # equal counts: zeros, whose mean does not round
    return (above_first - above_first.mean()).float()


def answer(
    sheet: Sheet,
    labellers: Sequence[Labeller],
    spec: DataSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """Let teachers label the views that they are asked for.

    Args:
        sheet: what there is to label.
        labellers: who labels which of it.
        spec: of the data set.
        device: where to label.
        dtype: of the convolutions.
        report: called with answers given and answers in all.

    Returns:
        For each labeller its logits, in the order of its views and within a view of its images,
        float16 [P, num_classes] on the CPU.
    """
    gallery = _Gallery(sheet, spec, device)
    total, done, lock = sum(int(labeller.mine.sum()) for labeller in labellers), 0, threading.Lock()

    def tell(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report(done, total)

    asked = [
        (group, pairs)
        for group in _asked_alike(labellers)
        for pairs in labellers[group[0]].mine.nonzero().split(_BATCH)
        if len(pairs)
    ]
    jobs = [
        partial(_label, [labellers[place] for place in group], gallery, pairs, dtype, tell)
        for group, pairs in asked
    ]
    nothing = torch.empty(0, spec.num_classes, dtype=torch.float16)
    found = [[nothing] for _ in labellers]
    for (group, _), said in zip(asked, side_by_side(jobs, device), strict=True):
        for place, logits in zip(group, said, strict=True):
            found[place].append(logits)
    # Parts go as they are joined: of many teachers all answers would be there twice.
    return [torch.cat(found.pop(0)) for _ in labellers]


def _asked_alike(labellers: Sequence[Labeller]) -> list[list[int]]:
    """Group those who are asked for the same views: if all are, each is made for them once."""
    places = [*range(len(labellers))]
    if all(torch.equal(labeller.mine, labellers[0].mine) for labeller in labellers):
        return [places] if places else []
    return [[place] for place in places]


@torch.no_grad()  # it is a matter of the thread
def _label(
    labellers: Sequence[Labeller],
    gallery: "_Gallery",
    pairs: Tensor,
    dtype: torch.dtype,
    tell: Callable[[int], None],
) -> list[Tensor]:
    """Let teachers label the same views, given as pairs of view and image, [B, 2]."""
    shown = gallery.show(pairs).contiguous(memory_format=torch.channels_last)
    parts = shown.split(forward_batch(shown.device))
    found = []
    for labeller in labellers:
        with autocast(shown.device, dtype):
            logits = torch.cat([labeller.teacher(part) for part in parts]).float()
        if labeller.prior is not None:
            logits = logits - labeller.prior.to(logits.device)
        found.append(logits.half().cpu())
        tell(len(pairs))
    return found


class _Gallery:
    """The views of a sheet: any of them, of any image, in one batch.

    The boxes of all views are drawn at once; they are 25 bytes for each label.
    """

    def __init__(self, sheet: Sheet, spec: DataSpec, device: torch.device) -> None:
        # As a job: whitening is a product of matrices, which more threads sum in another order.
        normalise = partial(spec.normalise, sheet.images.to(device))
        (self._images,) = side_by_side([normalise], device)
        self._outside = spec.outside(device) if sheet.options.shift else None
        self._drawn = sheet.drawn()
        self._boxes = torch.stack([drawn.boxes for drawn in self._drawn])
        self._flips = torch.stack([drawn.flips for drawn in self._drawn])
        sealed = [drawn.sealed for drawn in self._drawn if drawn.sealed is not None]
        self._sealed = torch.stack(sealed) if sealed else None
        self._mixed = torch.tensor([drawn.partner is not None for drawn in self._drawn])
        alone = torch.arange(len(sheet.images))
        partners = [alone if drawn.partner is None else drawn.partner for drawn in self._drawn]
        self._partners = torch.stack(partners)

    def show(self, pairs: Tensor) -> Tensor:
        """Return what `crops.render` gives for pairs of view and image, rising by view, [B, 2]."""
        view, image = pairs.unbind(1)
        shown = self._crop(view, image)
        mixed = self._mixed[view]
        if not mixed.any():
            return shown
        view, image = view[mixed], image[mixed]
        others = self._crop(view, self._partners[view, image])
        numbers, counts = view.unique_consecutive(return_counts=True)
        places = mixed.to(shown.device)
        parts = zip(
            numbers.tolist(),
            shown[places].split(counts.tolist()),
            others.split(counts.tolist()),
            strict=True,
        )
        shown[places] = torch.cat([crops.mix(a, b, self._drawn[number]) for number, a, b in parts])
        return shown

    def _crop(self, view: Tensor, image: Tensor) -> Tensor:
        sealed = None if self._sealed is None else self._sealed[view, image]
        views = Views(self._boxes[view, image], self._flips[view, image], sealed)
        return crops.apply(self._images[image.to(self._images.device)], views, self._outside)
