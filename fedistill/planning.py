"""What is decided before any client is asked: does it all fit, and who makes which images."""

from collections.abc import Mapping, Sequence

import torch

from fedistill import mosaic, registry, slots
from fedistill.config import Config
from fedistill.distillers.base import Distiller
from fedistill.errors import ConfigError, PartitionError
from fedistill.images import DataSpec
from fedistill.models import build
from fedistill.seeding import generator
from fedistill.slots import Plan


def distiller_of(config: Config) -> Distiller:
    """Make the distiller that a config names."""
    part = registry.build("distillers", config.distill.name, config.distill.options)
    assert isinstance(part, Distiller)
    return part


def check(config: Config, spec: DataSpec) -> None:
    """Refuse models, terms and views that do not fit the method or the images.

    Raises:
        ConfigError: extra loss terms for a method that does not optimise, or tiles that do not
            fill an image.
        ModelError: a model does not exist, does not take the images, or does not fit the method
            or a term.
    """
    distiller = distiller_of(config)
    if config.distill.regularizers and not distiller.takes_regularizers:
        raise ConfigError(
            f"distill.regularizers is given, and {config.distill.name} makes images without an "
            "optimisation that a term could enter; remove it, or use another distiller"
        )
    terms = [
        registry.build("losses", item.name, item.options) for item in config.distill.regularizers
    ]
    rivals = [registry.build("distillers", name, {}) for name in config.coresets]
    for model_config in config.teacher_models:
        model = build(model_config, spec, config.seed, "check")
        for part in (distiller, *rivals):
            part.check(model, model_config, spec)
        for term in terms:
            term.check(model, spec)
    averaged = [config.teacher_model(0)] if "fedavg" in config.baselines else []
    for model_config in (*averaged, *config.student.networks):
        build(model_config, spec, config.seed, "check")
    mosaic.require_tiles(config.relabel.tiles or 1, spec.size, "relabel.tiles")
    _check_sizes(config, distiller, spec)


def trains_sizes_together(config: Config) -> bool:
    """Return whether sets of several IPC guide each other: beside others each is another one."""
    return config.cotrain is not None or distiller_of(config).cotrains_sizes


def _check_sizes(config: Config, distiller: Distiller, spec: DataSpec) -> None:
    """Refuse sets that are to be trained together and cannot be."""
    sizes = list(config.distill.ipc)
    if trains_sizes_together(config) and sizes != sorted(sizes):
        raise ConfigError(
            f"distill.ipc is {sizes}, and sets that are trained together guide each other from "
            f"small to large; accepted: {sorted(sizes)}"
        )
    if config.cotrain is not None:
        part = registry.build("cotrain", config.cotrain.name, config.cotrain.options)
        part.check(config, distiller.mosaic_tiles, spec)


def allocate(
    config: Config,
    spec: DataSpec,
    histograms: Mapping[int, Sequence[int]],
    wanted: Sequence[int],
    made: Plan | None = None,
) -> Plan:
    """Deal slots; a client is asked for no more images than its shard can make.

    Args:
        config: of the experiment.
        spec: of the data set.
        histograms: for each partition id, how many real images of each class it holds.
        wanted: images of each class.
        made: images of the same set that each of these clients makes already: the real images
            behind them are used up. None: nothing yet.

    Raises:
        PartitionError: a class that nobody holds, or not often enough.
    """
    needed = distiller_of(config).real_images_per_image
    nothing = [0] * len(wanted)
    before = made or dict.fromkeys(histograms, nothing)
    left = {
        client: [has - needed * used for has, used in zip(held, before[client], strict=True)]
        for client, held in histograms.items()
    }
    try:
        return slots.RULES[config.federation.slots or "even"](left, wanted, needed)
    except LookupError as error:
        label, possible = error.args
        name = f"class '{spec.class_names[label]}'"
        if not any(held[label] for held in histograms.values()):
            raise PartitionError(
                f"{name} is held by no client, so nobody can distil it; take the class out of the "
                "data set, or bring in a client with it"
            ) from error
        done = sum(counts[label] for counts in before.values())
        most = possible + done
        less = f"up to {most}, " if most else ""
        raise PartitionError(
            f"distill.ipc asks for {wanted[label] + done} images of {name}, and "
            f"{config.distill.name} makes each from {needed} real image(s) of its own: the "
            f"clients hold enough for {most}; accepted: {less}more images of the class, or a "
            "method that needs no real images (sre2l)"
        ) from error


def plans(
    config: Config, spec: DataSpec, histograms: Mapping[int, Sequence[int]]
) -> dict[int, Plan]:
    """Return who makes which images, for the set of each IPC.

    Raises:
        PartitionError: a class that nobody holds, or not often enough.
    """
    return {
        ipc: allocate(config, spec, histograms, [ipc] * spec.num_classes)
        for ipc in config.distill.ipc
    }


def requests(config: Config, plans: Mapping[int, Plan]) -> Plan:
    """Return how many images of each class every client makes, for all sets together.

    Small sets are cut out of the images for the largest one. Where a method makes the images of
    a class for each other, every set has its own: one row of counts after the other, in the
    order of the plans.
    """
    combine = slots.end_to_end if distiller_of(config).optimises_jointly else slots.largest
    return combine(list(plans.values()))


def row(config: Config, ipc: int) -> int:
    """Return which row of such a request makes the set of an IPC."""
    return config.distill.ipc.index(ipc) if distiller_of(config).optimises_jointly else 0


def dropped(config: Config) -> frozenset[int]:
    """Return the partition ids of those who drop out of a simulation, as the config asks."""
    clients = config.partition.clients
    order = torch.randperm(clients, generator=generator(config.seed, "dropout"))
    return frozenset(order[: round(config.federation.dropout * clients)].tolist())
