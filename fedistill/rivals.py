"""The sets beside a distilled one: what other students are trained on, labelled as it was."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat

import torch
from torch import Tensor, nn

from fedistill import baselines, protocols
from fedistill.config import Config, RelabelConfig
from fedistill.distillers.base import Task
from fedistill.images import DataSpec, ImageSet
from fedistill.planning import distiller_of
from fedistill.sets import SyntheticSet
from fedistill.slots import Plan
from fedistill.teacher import Committee

Refine = Callable[[SyntheticSet, RelabelConfig], SyntheticSet]
# Makes the sets that the students of some numbers learn from, one after another.
Source = Callable[[Sequence[int]], Iterable[SyntheticSet]]

_log = logging.getLogger(__name__)


def tasks(
    config: Config,
    spec: DataSpec,
    train: ImageSet,
    shards: Sequence[Tensor],
    teachers: Mapping[int, nn.Module | None],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Task]:
    """Return what each client would be asked with, before it is known for which images.

    Args:
        config: of the experiment.
        spec: of the data set.
        train: the training split.
        shards: indices into it of each partition id.
        teachers: as for `scoring.score_all`.
        device: where to choose.
        dtype: of the convolutions.
    """
    return [
        Task(
            counts=[0] * spec.num_classes,
            shard=train.select(shards[client]),
            teachers=_members(net),
            models=config.teachers_of(client),
            spec=spec,
            seed=config.seed,
            partition_id=client,
            device=device,
            dtype=dtype,
        )
        for client, net in teachers.items()
    ]


def _members(net: nn.Module | None) -> list[nn.Module]:
    if net is None:
        return []
    return [*net.members] if isinstance(net, Committee) else [net]


def sources(
    config: Config,
    synthetic: SyntheticSet,
    wanted: Collection[str],
    tasks: Sequence[Task],
    refine: Refine,
) -> dict[str, Source]:
    """Return the sets beside a distilled one that students are trained on, by name of the row.

    They are chosen and labelled when students need them, not here.

    Args:
        config: of the experiment.
        synthetic: the distilled set, with soft labels.
        wanted: names of rows; those that are no sets are left alone.
        tasks: see `tasks`; none if no row is of real images.
        refine: labels a set with such views as a config says.
    """
    plain = replace(config.relabel, **protocols.PLAIN_VIEWS)
    found: dict[str, Source] = {}
    if "hard_label" in wanted:
        found["hard_label"] = one(partial(baselines.hard_label_set, synthetic))
    if "distilled_plain" in wanted:
        found["distilled_plain"] = one(partial(refine, synthetic, plain))
    counts = synthetic.as_image_set().histogram(synthetic.spec.num_classes)
    for name in config.coresets:
        try:
            rule = config.federation.slots or "even"
            plan = baselines.coreset_plan(name, tasks, counts, rule)
        except LookupError as error:
            label, possible = error.args
            _log.warning(
                "the row '%s' is left out: the set has %s images of class '%s', and the clients "
                "hold %s real ones",
                name, counts[label], synthetic.spec.class_names[label], possible,
            )  # fmt: skip
            continue
        choose = partial(_labelled_coreset, name, tasks, plan, refine)
        if name == "random":
            found["random"] = another(partial(choose, whole_image_views(config)))
            if "random_plain" in wanted:
                found["random_plain"] = another(partial(choose, plain))
        else:
            found[name] = one(partial(choose, whole_image_views(config), 0))
    return found


def whole_image_views(config: Config) -> RelabelConfig:
    """Return the views that real images are labelled in beside a distilled set.

    They are the set's own, but beside a mosaic: our own protocol shows its tiles, that of DREAM
    nothing else, and real images are no mosaics. To be seen in parts would cost them 2.6 points
    (CIFAR-10, our protocol) and much more (MNIST, DREAM's): LOG.md. What a user changed stays.
    """
    relabel, tiles = config.relabel, distiller_of(config).mosaic_tiles
    if tiles == 1:
        return relabel
    protocol = config.student.protocol
    mosaic, whole = protocols.view_keys(protocol, tiles), protocols.whole_image_keys(protocol)
    filled_in = [key for key in whole if getattr(relabel, key) == mosaic[key]]
    return replace(relabel, **{key: whole[key] for key in filled_in})


def _labelled_coreset(
    name: str,
    tasks: Sequence[Task],
    plan: Plan,
    refine: Refine,
    views: RelabelConfig,
    number: int,
) -> SyntheticSet:
    return refine(baselines.coreset(name, tasks, plan, number), views)


def one(make: Callable[[], SyntheticSet]) -> Source:
    """Return the source of one set for all students, made when the first needs it."""
    return lambda numbers: repeat(make(), len(numbers))


def another(make: Callable[[int], SyntheticSet]) -> Source:
    """Return the source of another set for each student, by its number."""
    return partial(map, make)
