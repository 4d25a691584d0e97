"""What a client does, with or without Flower: squeeze its shard, distil its share."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedistill import registry, store
from fedistill.config import Config
from fedistill.distillers.base import Distilled, Task
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.planning import distiller_of
from fedistill.shares import Share
from fedistill.store import Artefact, Store
from fedistill.teacher import Committee, freeze, squeeze
from fedistill.training import device_for, resolve_precision

Report = Callable[[str, int, int, str], None]
State = Mapping[str, Tensor]


def make_share(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    counts: Sequence[int],
    *,
    partition_id: int,
    attempt: int = 0,
    teacher_states: Sequence[State] = (),
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
    client = _Client(
        config=config,
        spec=spec,
        shard=shard,
        partition_id=partition_id,
        device=device,
        dtype=resolve_precision(config.precision, device),
        store=Store.from_environment(),
        report=report,
    )
    started = time.perf_counter()
    curve: list[tuple[int, float]] = []
    states = tuple(teacher_states)
    if not states:
        squeezed = [client.squeeze(n) for n in range(len(config.teachers_of(partition_id)))]
        states = tuple(artefact.tensors for artefact in squeezed)
        curve = [(epoch, loss) for epoch, loss in squeezed[0].notes["curve"]]
    squeezed_after = time.perf_counter() - started
    made = client.distill(counts, attempt, states)
    seconds = {"squeeze": squeezed_after, "recover": time.perf_counter() - started - squeezed_after}
    report("done", 1, 1, "")
    return Share(
        partition_id=partition_id,
        images=made.images,
        counts=tuple(counts),
        teachers=states,
        teacher_curve=curve,
        recover_curve=made.curve,
        seconds=seconds,
    )


@dataclass(frozen=True, kw_only=True)
class _Client:
    """One client at work: what it makes is kept in the store, and read from there if it can be."""

    config: Config
    spec: DataSpec
    shard: ImageSet
    partition_id: int
    device: torch.device
    dtype: torch.dtype
    store: Store
    report: Report

    def squeeze(self, number: int) -> Artefact:
        """Train one teacher; the notes hold its loss curve."""
        recipe = self.config.teacher
        models = self.config.teachers_of(self.partition_id)
        path: tuple[str | int, ...] = ("squeeze", self.partition_id)
        path += (number,) if number else ()
        alone = asdict(replace(recipe, count=1, backbones=()))
        key = self._key(path=path, model=asdict(models[number]), recipe=alone)
        kept = self.store.get("teacher", key)
        if kept is not None:
            return kept
        before, total = number * recipe.epochs, len(models) * recipe.epochs
        teacher, curve = squeeze(
            self.shard,
            self.spec,
            models[number],
            recipe,
            seed=self.config.seed,
            path=path,
            device=self.device,
            dtype=self.dtype,
            report=lambda done, _, loss: self.report(
                "squeeze", before + done, total, f"loss {loss:.3f}"
            ),
        )
        state = {name: tensor.cpu() for name, tensor in teacher.state_dict().items()}
        made = Artefact(state, {"curve": curve})
        self.store.put("teacher", key, made)
        return made

    def distill(
        self, counts: Sequence[int], attempt: int, teacher_states: Sequence[State]
    ) -> Distilled:
        """Make the images."""
        config = self.config
        models = config.teachers_of(self.partition_id)
        key = self._key(
            path=("recover", self.partition_id, attempt),
            counts=list(counts),
            models=[asdict(model) for model in models],
            teachers=[store.digest(state) for state in teacher_states],
            distill=asdict(replace(config.distill, ipc=(1,))),
        )
        kept = self.store.get("share", key)
        if kept is not None:
            curve = [(step, loss) for step, loss in kept.notes["curve"]]
            return Distilled(kept.tensors["images"], curve)
        teachers = [
            _restore(config, self.spec, self.partition_id, number, state).to(self.device)
            for number, state in enumerate(teacher_states)
        ]
        made = distiller_of(config).distill(
            Task(
                counts=counts,
                shard=self.shard,
                teachers=teachers,
                models=models,
                spec=self.spec,
                seed=config.seed,
                partition_id=self.partition_id,
                attempt=attempt,
                device=self.device,
                dtype=self.dtype,
                regularizers=[
                    (item.weight, registry.build("losses", item.name, item.options))
                    for item in config.distill.regularizers
                ],
                report=lambda done, total, loss: self.report(
                    "recover", done, total, f"loss {loss:.3f}"
                ),
            )
        )
        self.store.put("share", key, Artefact({"images": made.images}, {"curve": made.curve}))
        return made

    def _key(self, **parts: Any) -> dict[str, Any]:
        """Return everything that decides an artefact; the rounding depends on the threads too."""
        if self.store.folder is None:
            return {}
        return {
            "data": store.digest({"images": self.shard.images, "labels": self.shard.labels}),
            "spec": asdict(self.spec),
            "seed": self.config.seed,
            "device": self.device.type,
            "dtype": str(self.dtype),
            "threads": torch.get_num_threads(),
            **parts,
        }


def restore_teachers(
    config: Config, spec: DataSpec, partition_id: int, states: Sequence[State]
) -> nn.Module:
    """Rebuild a client's teachers from their weights, as one network that answers for them.

    Raises:
        RuntimeError: the weights are not those of the client's models.
    """
    expected = len(config.teachers_of(partition_id))
    if len(states) != expected:
        raise RuntimeError(f"{len(states)} teachers; expected {expected}")
    teachers = [_restore(config, spec, partition_id, *item) for item in enumerate(states)]
    return teachers[0] if len(teachers) == 1 else Committee(teachers)


def _restore(
    config: Config, spec: DataSpec, partition_id: int, number: int, state: State
) -> nn.Module:
    model = build(config.teachers_of(partition_id)[number], spec, config.seed, "restore")
    model.load_state_dict(dict(state))
    return freeze(model)


def set_threads(cpus: int) -> None:
    """Use this many threads, never more than there are cores.

    Sums over threads are added in another order when the number of threads changes, so it is set
    here and not left to the surroundings: a simulation and a local run then agree bit for bit.
    """
    torch.set_num_threads(max(1, min(cpus, os.cpu_count() or 1)))
