"""What a client does, with or without Flower: squeeze its shard, distil its share."""

import os
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedistill import registry
from fedistill.config import Config
from fedistill.distillers.base import Distiller, Task
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.models.build import require_batch_norm
from fedistill.shares import Share
from fedistill.teacher import freeze, squeeze
from fedistill.training import device_for, resolve_precision

Report = Callable[[str, int, int, str], None]


def distiller_of(config: Config) -> Distiller:
    """Make the distiller that a config names."""
    part = registry.build("distillers", config.distill.name, config.distill.options)
    assert isinstance(part, Distiller)
    return part


def check(config: Config, spec: DataSpec) -> None:
    """Refuse what cannot work before any client is asked.

    Raises:
        ModelError: a model does not exist, does not take the images, or does not fit the method.
    """
    distiller = distiller_of(config)
    for model_config in config.teacher_models:
        model = build(model_config, spec, config.seed, "check")
        if distiller.needs_batch_norm:
            require_batch_norm(model, model_config, config.distill.name)
    for model_config in config.student.networks:
        build(model_config, spec, config.seed, "check")


def make_share(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    counts: Sequence[int],
    *,
    partition_id: int,
    attempt: int = 0,
    teacher_states: Sequence[Mapping[str, Tensor]] = (),
    report: Report = lambda stage, done, total, note: None,
) -> Share:
    """Do a client's work.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        counts: images wanted of each class.
        partition_id: of the client.
        attempt: 0, or the number of a later request for more images.
        teacher_states: the client's teachers, if they are trained already.
        report: called with stage, steps done, steps in all, and a note.

    Returns:
        The client's share, its teachers included.
    """
    set_threads(config.federation.cpus_per_client)
    device = device_for(config.federation.gpus_per_client)
    dtype = resolve_precision(config.precision, device)
    started = time.perf_counter()
    curve: list[tuple[int, float]] = []
    if teacher_states:
        teachers = [_restore(config, spec, partition_id, state, device) for state in teacher_states]
    else:
        teacher, curve = squeeze(
            shard,
            spec,
            config.teacher_model(partition_id),
            config.teacher,
            seed=config.seed,
            path=("squeeze", partition_id),
            device=device,
            dtype=dtype,
            report=lambda done, total, loss: report("squeeze", done, total, f"loss {loss:.3f}"),
        )
        teachers = [teacher]
    squeezed = time.perf_counter()
    made = distiller_of(config).distill(
        Task(
            counts=counts,
            shard=shard,
            teachers=teachers,
            spec=spec,
            seed=config.seed,
            partition_id=partition_id,
            attempt=attempt,
            device=device,
            dtype=dtype,
            regularizers=[
                (item.weight, registry.build("losses", item.name, item.options))
                for item in config.distill.regularizers
            ],
            report=lambda done, total, loss: report("recover", done, total, f"loss {loss:.3f}"),
        )
    )
    seconds = {"squeeze": squeezed - started, "recover": time.perf_counter() - squeezed}
    report("done", 1, 1, "")
    states = tuple({k: v.cpu() for k, v in teacher.state_dict().items()} for teacher in teachers)
    return Share(
        partition_id=partition_id,
        images=made.images,
        counts=tuple(counts),
        teachers=states,
        teacher_curve=curve,
        recover_curve=made.curve,
        seconds=seconds,
    )


def restore_teacher(
    config: Config, spec: DataSpec, partition_id: int, state: Mapping[str, Tensor]
) -> nn.Module:
    """Rebuild a client's teacher from its weights.

    Raises:
        RuntimeError: the weights are not those of the client's model.
    """
    model = build(config.teacher_model(partition_id), spec, config.seed, "restore")
    model.load_state_dict(dict(state))
    return freeze(model)


def _restore(
    config: Config,
    spec: DataSpec,
    partition_id: int,
    state: Mapping[str, Tensor],
    device: torch.device,
) -> nn.Module:
    return restore_teacher(config, spec, partition_id, state).to(device)


def set_threads(cpus: int) -> None:
    """Use this many threads, never more than there are cores.

    Sums over threads are added in another order when the number of threads changes, so it is set
    here and not left to the surroundings: a simulation and a local run then agree bit for bit.
    """
    torch.set_num_threads(max(1, min(cpus, os.cpu_count() or 1)))
