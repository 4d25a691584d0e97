"""Relabel: teachers say what random views of the synthetic images show.

Distributed Boosting (DB, Eq. 9): every view of every image is labelled by a teacher drawn at
random among all clients, so the labels of one image come from many teachers over the views,
as bagging does. `own`, `single` and `mean` are the controls beside it.

Each view is labelled once; every student replays it from the seed (FKD).

Where clients hold different classes, `teacher_choice: coverage` draws teachers in proportion to
their images of the class; with `mean` it weighs them so, class by class. Whether teachers are here
or at home, `collect` decides who is asked for what; how they answer is in `answers.py`.
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
from fedistill.config import RelabelConfig
from fedistill.crops import ViewOptions
from fedistill.errors import ClientsFailed
from fedistill.images import DataSpec
from fedistill.seeding import derive_seed, generator
from fedistill.sets import SoftLabels, SyntheticSet

Histograms = Mapping[int, Sequence[int]]  # images of each class that a teacher was trained on


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


def class_weights(histograms: Histograms, teachers: Sequence[int]) -> Tensor:
    """Return what each teacher's word on each class weighs in an average, float32 [N, num_classes].

    Its share of the real images of the class that these teachers were trained on. So who never saw
    a class has no say in it, and who saw nearly all of it decides it nearly alone.

    Args:
        histograms: by partition id.
        teachers: partition ids.
    """
    num_classes = len(histograms[teachers[0]])
    held = coverage(histograms, teachers, torch.arange(num_classes)).T
    return (held / held.sum(0)).float()


def class_weighted(answers: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the sum of teachers' log-probabilities, class by class weighted.

    Args:
        answers: logits of each teacher, [M, num_classes].
        weights: of each teacher in each class, [N, num_classes].

    Returns:
        Float32 [M, num_classes].
    """
    total = torch.zeros(answers[0].shape)
    for weight, logits in zip(weights, answers, strict=True):
        total += weight * logits.float().log_softmax(1)
    return total


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
    answered = sorted(answers)
    said = [answers[client] for client in answered]
    if config.teacher_choice == "coverage":
        assert histograms is not None
        total = class_weighted(said, class_weights(histograms, answered))
        total -= total.mean(1, keepdim=True)  # around 0, as logits are: students may copy them
    else:
        total = torch.zeros(everything.numel(), synthetic.spec.num_classes)
        for logits in said:
            total += logits.float()
        total /= len(said)
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
