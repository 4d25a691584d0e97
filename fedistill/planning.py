"""What is decided before any client is asked: does it all fit, and who makes which images."""

from collections.abc import Mapping, Sequence

from fedistill import registry, slots
from fedistill.config import Config
from fedistill.distillers.base import Distiller
from fedistill.errors import ConfigError, PartitionError
from fedistill.images import DataSpec
from fedistill.models import build
from fedistill.slots import Plan


def distiller_of(config: Config) -> Distiller:
    """Make the distiller that a config names."""
    part = registry.build("distillers", config.distill.name, config.distill.options)
    assert isinstance(part, Distiller)
    return part


def check(config: Config, spec: DataSpec) -> None:
    """Refuse models and terms that do not fit the method.

    Raises:
        ConfigError: extra loss terms for a method that does not optimise.
        ModelError: a model does not exist, does not take the images, or does not fit the method.
    """
    distiller = distiller_of(config)
    if config.distill.regularizers and not distiller.takes_regularizers:
        raise ConfigError(
            f"distill.regularizers is given, and {config.distill.name} makes images without an "
            "optimisation that a term could enter; remove it, or use another distiller"
        )
    for model_config in config.teacher_models:
        distiller.check(build(model_config, spec, config.seed, "check"), model_config, spec)
    for model_config in config.student.networks:
        build(model_config, spec, config.seed, "check")


def allocate(
    config: Config,
    spec: DataSpec,
    histograms: Mapping[int, Sequence[int]],
    wanted: Sequence[int],
) -> Plan:
    """Deal slots; a client is asked for no more images than its shard can make.

    Args:
        config: of the experiment.
        spec: of the data set.
        histograms: for each partition id, how many real images of each class it has to give.
        wanted: images of each class.

    Raises:
        PartitionError: a class that nobody holds, or not often enough.
    """
    needed = distiller_of(config).real_images_per_image
    try:
        return slots.allocate(histograms, wanted, needed)
    except LookupError as error:
        label, possible = error.args
        name = f"class '{spec.class_names[label]}'"
        if any(counts[label] for counts in histograms.values()):
            raise PartitionError(
                f"distill.ipc asks for {wanted[label]} images of {name}, and "
                f"{config.distill.name} makes each from {needed} real image(s) of its own: the "
                f"clients hold enough for {possible}; accepted: up to {possible}, or a method "
                "that needs no real images (sre2l)"
            ) from error
        raise PartitionError(
            f"{name} is held by no client, so nobody can distil it; take the class out of the "
            "data set, or bring in a client with it"
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
