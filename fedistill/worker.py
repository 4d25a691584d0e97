"""One client at work: what it trains and makes is kept in the store, and read from there again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedistill import registry, store
from fedistill.config import Config, ModelConfig, TeacherConfig
from fedistill.cores import set_threads
from fedistill.distillers.base import Batch, Task
from fedistill.errors import RunError
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.planning import distiller_of
from fedistill.store import Artefact, Store
from fedistill.teacher import Committee, freeze, squeeze
from fedistill.training import device_for, resolve_precision

Report = Callable[[str, int, int, str], None]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Row:
    """What is asked for one set: see `Task`."""

    ipc: int
    counts: Sequence[int]
    made: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Worker:
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
        models = self.config.teachers_of(self.partition_id)
        recipe = replace(self.config.teacher, count=1, backbones=())
        path = self._path(number)
        return self._train(models[number], recipe, path, part=number, parts=len(models))

    def train_from(self, weights: State, server_round: int) -> Artefact:
        """Train the weights of a round of FedAvg; the notes hold the loss curve."""
        rounds, epochs = self.config.fedavg.rounds, self.config.fedavg.epochs
        assert epochs is not None
        recipe = replace(self.config.teacher, count=1, backbones=(), epochs=epochs)
        model = self.config.teacher_model(self.partition_id)
        path = ("fedavg", self.partition_id, server_round)
        return self._train(model, recipe, path, weights, part=server_round - 1, parts=rounds)

    def _train(
        self,
        model: ModelConfig,
        recipe: TeacherConfig,
        path: tuple[str | int, ...],
        start: State | None = None,
        *,
        part: int,
        parts: int,
    ) -> Artefact:
        """Train a network on the shard, which is one of several equal parts of a stage."""
        stage = str(path[0])
        before, total = part * recipe.epochs, parts * recipe.epochs

        def make() -> Artefact:
            teacher, curve = squeeze(
                self.shard,
                self.spec,
                model,
                recipe,
                seed=self.config.seed,
                path=path,
                start=start,
                device=self.device,
                dtype=self.dtype,
                report=lambda done, _, loss: self.report(
                    stage, before + done, total, f"loss {loss:.3f}"
                ),
            )
            state = {name: tensor.cpu() for name, tensor in teacher.state_dict().items()}
            return Artefact(state, {"curve": curve})

        origin = {} if start is None else {"start": store.digest(start)}
        key = self._training_key(model, recipe, path, **origin)
        artefact = self.store.recall("teacher", key, make)
        if artefact.found:
            self.report(stage, before + recipe.epochs, total, "from the store")
        return artefact

    def teacher_key(self, number: int) -> dict[str, Any]:
        """Return what decides one teacher."""
        models = self.config.teachers_of(self.partition_id)
        recipe = replace(self.config.teacher, count=1, backbones=())
        return self._training_key(models[number], recipe, self._path(number))

    def _training_key(
        self, model: ModelConfig, recipe: TeacherConfig, path: tuple[str | int, ...], **more: str
    ) -> dict[str, Any]:
        return self._key(path=path, model=asdict(model), recipe=asdict(recipe), **more)

    def _path(self, number: int) -> tuple[str | int, ...]:
        return ("squeeze", self.partition_id, *((number,) if number else ()))

    def kept_teacher(self, number: int) -> State:
        """Read the weights of a teacher that this client has trained before."""
        found = self.store.get("teacher", self.teacher_key(number))
        if found is None:
            raise RunError(
                f"client {self.partition_id} finds no teacher of this run in its store "
                f"({self.store.folder or f'{store.VARIABLE} is not set'}); keep one store for all "
                "messages of a run, or set relabel.at: server"
            )
        return found.tensors

    def recover(
        self,
        counts: Sequence[int],
        attempt: int,
        made: Sequence[Sequence[int]],
        states: Sequence[State],
    ) -> list[Artefact]:
        """Make the images, one artefact for each optimisation; the notes hold its loss curve."""
        jobs = self.jobs(counts, made)
        return [
            self._optimise(job, attempt, states, before=number / len(jobs), part=1 / len(jobs))
            for number, job in enumerate(jobs)
        ]

    def jobs(self, counts: Sequence[int], made: Sequence[Sequence[int]]) -> list[list["Row"]]:
        """Split what is asked for into optimisations: rows of counts that are made together."""
        classes = self.spec.num_classes
        starts = range(0, len(counts), classes)
        sizes = self.config.distill.ipc
        rows = [
            Row(
                ipc,
                counts[start : start + classes],
                [before[start : start + classes] for before in made],
            )
            for ipc, start in zip(sizes if len(starts) > 1 else [max(sizes)], starts, strict=True)
        ]
        return [rows] if distiller_of(self.config).cotrains_sizes else [[row] for row in rows]

    def share_key(
        self, rows: Sequence["Row"], attempt: int, teacher_states: Sequence[State]
    ) -> dict[str, Any]:
        """Return what decides the images of some rows of counts."""
        parts: dict[str, Any] = {"counts": [list(row.counts) for row in rows]}
        if distiller_of(self.config).depends_on_ipc:
            parts["ipc"] = [row.ipc for row in rows]
        return self.batch_key(parts, rows, attempt, teacher_states)

    def batch_key(
        self,
        parts: Mapping[str, Any],
        rows: Sequence["Row"],
        attempt: int,
        teacher_states: Sequence[State],
    ) -> dict[str, Any]:
        """Return what decides images, however many are asked for, beside what is in the parts."""
        models = self.config.teachers_of(self.partition_id)
        return self._key(
            path=("recover", self.partition_id, attempt),
            made=[[list(before) for before in row.made] for row in rows],
            models=[asdict(model) for model in models],
            teachers=[store.digest(state) for state in teacher_states],
            distill=asdict(replace(self.config.distill, ipc=(1,))),
            **parts,
        )

    def _optimise(
        self,
        rows: Sequence["Row"],
        attempt: int,
        teacher_states: Sequence[State],
        before: float,
        part: float,
    ) -> Artefact:
        """Make the images of some rows of counts, which is that part of the work."""
        config = self.config
        models = config.teachers_of(self.partition_id)

        def report(done: int, total: int, loss: float | None) -> None:
            all_steps = round(total / part)
            note = "" if loss is None else f"loss {loss:.3f}"
            self.report("recover", round(before * all_steps) + done, all_steps, note)

        spared: list[float] = []  # seconds of batches that were made before

        def recall(parts: Mapping[str, Any], make: Callable[[], Batch]) -> Batch:
            def artefact() -> Artefact:
                batch = make()
                return Artefact({"images": batch.images}, {"curve": batch.curve})

            key = self.batch_key(parts, rows, attempt, teacher_states)
            found = self.store.recall("batch", key, artefact)
            spared.extend([found.notes["seconds"]] if found.found else [])
            return Batch(found.tensors["images"], curve_of(found))

        def make() -> Artefact:
            teachers = _restored(config, self.spec, self.partition_id, teacher_states)
            task = Task(
                counts=(),
                shard=self.shard,
                teachers=[teacher.to(self.device) for teacher in teachers],
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
                report=report,
                recall=recall,
            )
            tasks = [replace(task, ipc=row.ipc, counts=row.counts, made=row.made) for row in rows]
            found = distiller_of(config).distill_sizes(tasks)
            images = torch.cat([size.images for size in found])
            curves = {name: curve for size in found for name, curve in size.curves.items()}
            notes = {"curve": found[0].curve, "curves": curves, "spared": sum(spared)}
            return Artefact({"images": images}, notes)

        key = self.share_key(rows, attempt, teacher_states)
        artefact = self.store.recall("share", key, make)
        if artefact.found:
            self.report("recover", round((before + part) * 100), 100, "from the store")
        return artefact

    def _key(self, **parts: Any) -> dict[str, Any]:
        """Return everything that decides an artefact; the rounding depends on the threads too."""
        if self.store.folder is None:
            return {}
        return {
            "data": self._data,
            "spec": self.spec.as_dict(),
            "seed": self.config.seed,
            "device": self.device.type,
            "dtype": str(self.dtype),
            "threads": torch.get_num_threads(),
            **parts,
        }

    @cached_property
    def _data(self) -> str:
        shard = {"images": self.shard.images, "labels": self.shard.labels}
        return store.digest({**shard, **self.spec.tensors()})


def worker_of(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    partition_id: int,
    store: Store,
    report: Report = lambda stage, done, total, note: None,
    device: torch.device | None = None,
) -> "Worker":
    """Set this process up for the work of one client.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        partition_id: of the client.
        store: what is made is kept there.
        report: called with stage, steps done, steps in all, and a note.
        device: where to compute; None: as the config says.
    """
    set_threads(config.federation.cpus_per_client)
    if device is None:
        device = device_for(config.federation.gpus_per_client)
    return Worker(
        config=config,
        spec=spec,
        shard=shard,
        partition_id=partition_id,
        device=device,
        dtype=resolve_precision(config.precision, device),
        store=store,
        report=report,
    )


def spared_of(artefact: Artefact) -> float:
    """Return the seconds that parts of an artefact took when they were made before."""
    return float(artefact.notes.get("spared", 0.0))


def curve_of(artefact: Artefact) -> list[tuple[int, float]]:
    """Return the (step, loss) that an artefact's notes hold."""
    return [(step, loss) for step, loss in artefact.notes["curve"]]


def restore_teachers(
    config: Config, spec: DataSpec, partition_id: int, states: Sequence[State]
) -> nn.Module:
    """Rebuild a client's teachers from their weights, as one network that answers for them.

    Raises:
        RuntimeError: the weights are not those of the client's models.
    """
    teachers = _restored(config, spec, partition_id, states)
    return teachers[0] if len(teachers) == 1 else freeze(Committee(teachers))


def _restored(
    config: Config, spec: DataSpec, partition_id: int, states: Sequence[State]
) -> list[nn.Module]:
    models = config.teachers_of(partition_id)
    if len(states) != len(models):
        raise RuntimeError(f"{len(states)} teachers; expected {len(models)}")
    teachers = []
    for model_config, state in zip(models, states, strict=True):
        model = build(model_config, spec, config.seed, "restore")
        model.load_state_dict(dict(state))
        teachers.append(freeze(model))
    return teachers
