"""Relabel: teachers say what random views of the synthetic images show.

Distributed Boosting (DB, Eq. 9): every view of every image is labelled by a teacher drawn at
random among all clients, so the labels of one image come from many teachers over the views,
as bagging does. `own`, `single` and `mean` are the controls beside it; `consensus` weighs the
answers of all for each view of each image.

Each view is labelled once; every student replays it from the seed (FKD).

Where clients hold different classes, `teacher_choice: coverage` draws teachers in proportion to
their images of the class; `mean` and `consensus` weigh them by it (`fusion.py`). Whether teachers
are here or at home, `collect` decides who is asked for what; how they answer is in `answers.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedistill.answers import (
    NOT_FINITE,
    Labeller,
    LeftOut,
    Sheet,
    answer,
    prior_adjustment,
    warn_of,
)
from fedistill.config import ASK_ALL, RelabelConfig
from fedistill.crops import ViewOptions
from fedistill.errors import ClientsFailed
from fedistill.fusion import Histograms, class_weighted, class_weights, consensus, coverage
from fedistill.images import DataSpec
from fedistill.seeding import derive_seed, generator
from fedistill.sets import SoftLabels, SyntheticSet

# Is given a sheet and, for each teacher asked, which views are its own, bool [views, M]; returns
# the logits of those who answered, float16 [number of these views, num_classes].
Ask = Callable[[Sheet, Mapping[int, Tensor]], Mapping[int, Tensor]]


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
    left_out: LeftOut = warn_of,
) -> SyntheticSet:
    """Label random views of a set with teachers that are here.

    One whose logits are not all finite in float16 has not answered: a NaN would reach every
    student, and who is asked for it in a deployment may want that.

    Args:
        synthetic: the integrated set.
        teachers: by partition id, in eval mode.
        config: how many views, and who labels them.
        seed: decides views and teachers.
        device: where to label.
        dtype: of the convolutions.
        histograms: of the teachers' shards, for coverage and prior correction.
        report: called with answers given and answers in all.
        left_out: is told whose labels are not taken, and why.

    Returns:
        The same set with soft labels, float16 [views, M, C].

    Raises:
        ClientsFailed: nobody has answered.
    """
    left = set(teachers)

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
        found = dict(zip(asked, answers, strict=True))
        for client, logits in found.items():
            if not bool(logits.isfinite().all()):
                left_out(client, NOT_FINITE)
                left.discard(client)
        if not left:
            raise ClientsFailed(f"no client is left that labels; of each one {NOT_FINITE}")
        return {client: logits for client, logits in found.items() if client in left}

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
    `own`, to the next one for `single`, left out for `mean` and `consensus`.

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
    gather = _fused if config.name in ASK_ALL else _dealt
    logits = gather(synthetic, list(teachers), config, sheet, ask, histograms)
    return replace(synthetic, soft_labels=SoftLabels(logits, sheet.seed, sheet.options))


def _fused(
    synthetic: SyntheticSet,
    teachers: list[int],
    config: RelabelConfig,
    sheet: Sheet,
    ask: Ask,
    histograms: Histograms | None,
) -> Tensor:
    """Let all teachers answer for every view of each image, and make one answer of theirs."""
    everything = torch.ones(sheet.views, len(synthetic), dtype=torch.bool)
    answers = ask(sheet, dict.fromkeys(teachers, everything))
    answered = sorted(answers)
    said = [answers[client] for client in answered]
    weights = None
    if config.teacher_choice == "coverage":
        assert histograms is not None
        weights = class_weights(histograms, answered)
    if config.name == "consensus":
        if weights is None:
            weights = torch.full((len(said), synthetic.spec.num_classes), 1 / len(said))
        total = consensus(said, weights)
    elif weights is not None:
        total = class_weighted(said, weights)
    else:
        total = torch.zeros(everything.numel(), synthetic.spec.num_classes)
        for logits in said:
            total += logits.float()
        return (total / len(said)).half().view(*everything.shape, -1)
    total -= total.mean(1, keepdim=True)  # around 0, as logits are: students may copy them
    return total.half().view(*everything.shape, -1)


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
    assert config.name is not None
    name: str = config.name
    path: tuple[str, ...] = ("teacher",)
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
