"""Relabel: teachers say what random views of the synthetic images show.

Distributed Boosting (DB, Eq. 9): every view of every image is labelled by a teacher drawn at
random among all clients, so the labels of one image come from many teachers over the views,
as bagging does. `own`, `single` and `mean` are the controls beside it.

Each view is labelled once; every student replays it from the seed (FKD).

Where clients hold different classes, two options let a label know what its teacher has seen:
`teacher_choice: coverage` draws teachers in proportion to their images of the class, and
`prior_correction` is the post-hoc logit adjustment of Menon et al., "Long-tail learning via logit
adjustment" (ICLR 2021, Sec. 4.1, tau 1): a teacher that saw a class seldom does not vote it down.

Whether teachers stand on the server or stay at home, `collect` decides who is asked for what, and
`answer` is the computation: each teacher's views in their order, in batches of one size, on one
thread each. So both ways give the same bits, whatever else is asked beside.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fedistill import crops
from fedistill.config import RelabelConfig
from fedistill.crops import ViewOptions, Views
from fedistill.images import DataSpec
from fedistill.seeding import derive_seed, generator
from fedistill.sets import SoftLabels, SyntheticSet
from fedistill.training import autocast, side_by_side

_BATCH = 500  # views that a teacher is shown at once; another number rounds differently

Histograms = Mapping[int, Sequence[int]]  # images of each class that a teacher was trained on


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


# Is given a sheet and, for each teacher asked, which views are its own, bool [views, M]; returns
# the logits of those who answered, float16 [number of these views, num_classes].
Ask = Callable[[Sheet, Mapping[int, Tensor]], Mapping[int, Tensor]]


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


def view_options(config: RelabelConfig, spec: DataSpec) -> ViewOptions:
    """Return the distribution of the views; mirroring follows the data set unless given."""
    assert config.scale is not None
    return ViewOptions(
        scale=config.scale,
        shift=config.shift or 0,
        flip=spec.flip if config.flip is None else config.flip,
        tiles=config.tiles or 1,
        tile_share=config.tile_share or 0.0,
        mix=config.mix or "none",
        mix_alpha=config.mix_alpha or 1.0,
        mix_probability=1.0 if config.mix_probability is None else config.mix_probability,
    )


def choose_teachers(
    name: str,
    clients: Tensor,
    teachers: list[int],
    stream: torch.Generator,
    coverage: Tensor | None = None,
) -> Tensor:
    """Choose who labels each image in one view.

    Args:
        name: `mix`, `own` or `single`.
        clients: partition id that made each image, [M].
        teachers: partition ids that have a teacher, sorted.
        stream: drawn from for `mix` (DB: k uniform in 1..N, anew for every crop).
        coverage: of `mix`: weight of each of these teachers for each image, float64 [M, N];
            None: all weigh the same.

    Returns:
        Partition ids, int64 [M].
    """
    if name == "own":
        return clients
    if name == "single":
        return torch.full_like(clients, teachers[0])
    if coverage is None:
        drawn = torch.randint(len(teachers), (len(clients),), generator=stream)
    else:
        drawn = torch.multinomial(coverage, 1, generator=stream)[:, 0]
    return torch.tensor(teachers)[drawn]


def coverage(histograms: Histograms, teachers: Sequence[int], labels: Tensor) -> Tensor:
    """Return how many images of each image's class every teacher was trained on, float64 [M, N].

    Args:
        histograms: by partition id.
        teachers: partition ids.
        labels: hard labels of the set, [M].
    """
    held = torch.tensor([[*histograms[n]] for n in teachers], dtype=torch.float64).T[labels]
    # Nobody among these saw the class: all are as good.
    return torch.where(held.sum(1, keepdim=True) > 0, held, torch.ones_like(held))


def prior_adjustment(histogram: Sequence[int]) -> Tensor:
    """Return what is taken from the logits of a teacher that was trained on such a shard.

    Menon et al. (ICLR 2021), Eq. (9) with tau 1: the log of the class prior, here with Laplace
    smoothing, (n_c + 1) / (n + C), since a shard may lack a class; centred, so that it has mean 0
    over the classes. Exactly 0 for equal counts.

    Args:
        histogram: images of each class, [num_classes].

    Returns:
        Float32 [num_classes].
    """
    # The denominator is the same for all classes: centring takes it out.
    log_prior = torch.tensor([*histogram], dtype=torch.float64).add(1).log()
    above_first = log_prior - log_prior[0]  # equal counts: zeros, whose mean does not round
    return (above_first - above_first.mean()).float()


def relabel(
    synthetic: SyntheticSet,
    teachers: Mapping[int, nn.Module],
    config: RelabelConfig,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    histograms: Histograms | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> SyntheticSet:
    """Label random views of a set with teachers that are here.

    Args:
        synthetic: the integrated set.
        teachers: by partition id, in eval mode.
        config: how many views, and who labels them.
        seed: decides views and teachers.
        device: where to label.
        dtype: of the convolutions.
        histograms: of the teachers' shards, for coverage and prior correction.
        report: called with answers given and answers in all.

    Returns:
        The same set with soft labels, float16 [views, M, C].
    """

    def ask(sheet: Sheet, asked: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
        labellers = []
        for client, mine in asked.items():
            prior = None
            if config.prior_correction:
                assert histograms is not None
                prior = prior_adjustment(histograms[client])
            labellers.append(Labeller(teachers[client], mine, prior))
        answers = answer(
            sheet, labellers, synthetic.spec, device=device, dtype=dtype, report=report
        )
        return dict(zip(asked, answers, strict=True))

    return collect(synthetic, sorted(teachers), config, ask, seed=seed, histograms=histograms)


def collect(
    synthetic: SyntheticSet,
    teachers: Sequence[int],
    config: RelabelConfig,
    ask: Ask,
    *,
    seed: int,
    histograms: Histograms | None = None,
) -> SyntheticSet:
    """Let teachers label random views of a set, wherever they are.

    What a teacher was asked for and did not answer goes to the others: drawn anew for `mix` and
    `own`, to the next one for `single`, left out of the average for `mean`.

    Args:
        synthetic: the integrated set.
        teachers: partition ids, sorted.
        config: how many views, and who labels them.
        ask: raises when nobody is left.
        seed: decides views and teachers.
        histograms: of the teachers' shards, for coverage.

    Returns:
        The same set with soft labels, float16 [views, M, C].
    """
    assert config.views is not None
    sheet = Sheet(
        synthetic.images,
        config.views,
        derive_seed(seed, "relabel", len(synthetic)),
        view_options(config, synthetic.spec),
    )
    gather = _mean if config.name == "mean" else _dealt
    logits = gather(synthetic, list(teachers), config, sheet, ask, histograms)
    return replace(synthetic, soft_labels=SoftLabels(logits, sheet.seed, sheet.options))


def _mean(
    synthetic: SyntheticSet,
    teachers: list[int],
    config: RelabelConfig,
    sheet: Sheet,
    ask: Ask,
    histograms: Histograms | None,
) -> Tensor:
    everything = torch.ones(sheet.views, len(synthetic), dtype=torch.bool)
    answers = ask(sheet, dict.fromkeys(teachers, everything))
    total = torch.zeros(everything.numel(), synthetic.spec.num_classes)
    for _, logits in sorted(answers.items()):
        total += logits.float()
    return (total / len(answers)).half().view(*everything.shape, -1)


def _dealt(
    synthetic: SyntheticSet,
    teachers: list[int],
    config: RelabelConfig,
    sheet: Sheet,
    ask: Ask,
    histograms: Histograms | None,
) -> Tensor:
    """Let one teacher answer for each view of each image."""
    logits = torch.empty(
        sheet.views, len(synthetic), synthetic.spec.num_classes, dtype=torch.float16
    )
    name, path = config.name, ("teacher",)
    lost = torch.ones(sheet.views, len(synthetic), dtype=torch.bool)
    while True:
        weights = None
        if config.teacher_choice == "coverage":
            assert histograms is not None
            weights = coverage(histograms, teachers, synthetic.hard_labels)
        chosen = torch.stack(
            [
                choose_teachers(
                    name,
                    synthetic.clients,
                    teachers,
                    generator(sheet.seed, *path, view),
                    weights,
                )
                for view in range(sheet.views)
            ]
        )
        wanted = {n: lost & (chosen == n) for n in chosen[lost].unique().tolist()}
        answers = ask(sheet, wanted)
        for client, found in answers.items():
            logits[wanted[client]] = found
        silent = wanted.keys() - answers.keys()
        if not silent:
            return logits
        teachers = [client for client in teachers if client not in silent]
        lost = torch.stack([wanted[client] for client in silent]).any(0)
        name = "mix" if name == "own" else name  # whose own teacher is gone is asked of anyone
        path = ("teacher", "of", *map(str, teachers))


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
    asked = [labeller.mine.nonzero().split(_BATCH) for labeller in labellers]
    total, done, lock = sum(int(labeller.mine.sum()) for labeller in labellers), 0, threading.Lock()

    def tell(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report(done, total)

    jobs = [
        partial(_label, labeller, gallery, pairs, dtype, tell)
        for labeller, batches in zip(labellers, asked, strict=True)
        for pairs in batches
        if len(pairs)
    ]
    found = iter(side_by_side(jobs, device))
    nothing = torch.empty(0, spec.num_classes, dtype=torch.float16)
    return [torch.cat([nothing, *(next(found) for b in batches if len(b))]) for batches in asked]


@torch.no_grad()  # it is a matter of the thread
def _label(
    labeller: Labeller,
    gallery: "_Gallery",
    pairs: Tensor,
    dtype: torch.dtype,
    tell: Callable[[int], None],
) -> Tensor:
    """Let one teacher label some views, given as pairs of view and image, [B, 2]."""
    shown = gallery.show(pairs).contiguous(memory_format=torch.channels_last)
    with autocast(shown.device, dtype):
        logits = labeller.teacher(shown).float()
    if labeller.prior is not None:
        logits = logits - labeller.prior.to(logits.device)
    tell(len(pairs))
    return logits.half().cpu()


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
