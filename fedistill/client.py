"""What a client does, with or without Flower: squeeze its shard, distil its share, label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedistill import registry, store
from fedistill.answers import Labeller, Sheet, answer, prior_adjustment
from fedistill.config import Config, ModelConfig, TeacherConfig
from fedistill.cores import set_threads
from fedistill.distillers.base import Batch, Task
from fedistill.errors import RunError
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
    made: Sequence[int] = (),
    teacher_states: Sequence[State] = (),
    report: Report = lambda stage, done, total, note: None,
) -> Share:
    """Do a client's work.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        counts: images wanted of each class; where sets of several sizes have images of their
            own, one row after the other (`planning.requests`).
        partition_id: of the client.
        attempt: 0, or the number of a later request for more images.
        made: as many as earlier requests got, or nothing.
        teacher_states: the client's teachers, if they are trained already.
        report: called with stage, steps done, steps in all, and a note.

    Returns:
        The client's share, its teachers included.
    """
    client = _client(config, spec, shard, partition_id, Store.from_environment(), report)
    squeezed: list[Artefact] = []
    if not teacher_states:
        squeezed = [client.squeeze(n) for n in range(len(config.teachers_of(partition_id)))]
    states = tuple(artefact.tensors for artefact in squeezed) or tuple(teacher_states)
    recovered = client.recover(counts, attempt, made, states)
    report("done", 1, 1, "")
    work = {"squeeze": squeezed, "recover": recovered}
    return Share(
        partition_id=partition_id,
        images=torch.cat([artefact.tensors["images"] for artefact in recovered]),
        counts=tuple(counts),
        teachers=states,
        teacher_curve=_curve(squeezed[0]) if squeezed else (),
        recover_curve=_curve(recovered[0]),
        curves={
            name: [(step, value) for step, value in curve]
            for artefact in recovered
            for name, curve in artefact.notes["curves"].items()
        },
        seconds={
            stage: sum((it.notes["seconds"] + _spared(it) for it in items), 0.0)
            for stage, items in work.items()
        },
        from_store=tuple(
            stage
            for stage, items in work.items()
            if any(it.found or _spared(it) > 0 for it in items)
        ),
    )


class Kept(NamedTuple):
    """What the store holds of a client's work: all its teachers; its images too."""

    teachers: bool
    share: bool


def kept(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    counts: Sequence[int],
    *,
    partition_id: int,
    store: Store,
) -> Kept:
    """Look up what a client would find in the store, were it asked for a first share.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        counts: as for `make_share`.
        partition_id: of the client.
        store: where to look.
    """
    client = _client(config, spec, shard, partition_id, store)
    numbers = range(len(config.teachers_of(partition_id)))
    teachers = [store.get("teacher", client.teacher_key(number)) for number in numbers]
    states = [found.tensors for found in teachers if found is not None]
    if len(states) < len(numbers):
        return Kept(teachers=False, share=False)
    keys = [client.share_key(job, 0, states) for job in client.jobs(counts, ())]
    return Kept(teachers=True, share=all(store.get("share", key) for key in keys))


def train_from(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    weights: State,
    *,
    partition_id: int,
    server_round: int,
    report: Report = lambda stage, done, total, note: None,
) -> tuple[State, float]:
    """Do a client's part of a round of FedAvg: train the common network on its shard.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        weights: of the common network; buffers included.
        partition_id: of the client.
        server_round: 1-based; enters the seed.
        report: called with stage, steps done, steps in all, and a note.

    Returns:
        The trained weights and buffers, and the mean loss of the last epoch.

    Raises:
        RuntimeError: the weights are not those of the client's model.
    """
    client = _client(config, spec, shard, partition_id, Store.from_environment(), report)
    trained = client.train_from(weights, server_round)
    return trained.tensors, _curve(trained)[-1][1]


def _client(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    partition_id: int,
    store: Store,
    report: Report = lambda stage, done, total, note: None,
) -> "_Client":
    set_threads(config.federation.cpus_per_client)
    device = device_for(config.federation.gpus_per_client)
    return _Client(
        config=config,
        spec=spec,
        shard=shard,
        partition_id=partition_id,
        device=device,
        dtype=resolve_precision(config.precision, device),
        store=store,
        report=report,
    )


def label(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    sheet: Sheet,
    mine: Tensor,
    *,
    partition_id: int,
    report: Report = lambda stage, done, total, note: None,
) -> Tensor:
    """Label views of the integrated set with the teachers that this client has kept.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images; they decide the key of its teachers.
        sheet: what there is to label.
        mine: which of it, bool [views, M].
        partition_id: of the client.
        report: as for `make_share`.

    Returns:
        Logits, float16 [number of these views, num_classes].

    Raises:
        RunError: the teachers are not in the store: others would not be those of this run.
    """
    client = _client(config, spec, shard, partition_id, Store.from_environment(), report)
    states = [client.kept_teacher(n) for n in range(len(config.teachers_of(partition_id)))]
    teacher = restore_teachers(config, spec, partition_id, states).to(client.device)
    prior = None
    if config.relabel.prior_correction:
        prior = prior_adjustment(shard.histogram(spec.num_classes))
    (logits,) = answer(
        sheet,
        [Labeller(teacher, mine, prior)],
        spec,
        device=client.device,
        dtype=client.dtype,
        report=lambda done, total: report("label", done, total, ""),
    )
    return logits


@dataclass(frozen=True)
class _Row:
    """What is asked for one set: see `Task`."""

    ipc: int
    counts: Sequence[int]
    made: Sequence[int]


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
        self, counts: Sequence[int], attempt: int, made: Sequence[int], states: Sequence[State]
    ) -> list[Artefact]:
        """Make the images, one artefact for each optimisation; the notes hold its loss curve."""
        jobs = self.jobs(counts, made)
        return [
            self._optimise(job, attempt, states, before=number / len(jobs), part=1 / len(jobs))
            for number, job in enumerate(jobs)
        ]

    def jobs(self, counts: Sequence[int], made: Sequence[int]) -> list[list["_Row"]]:
        """Split what is asked for into optimisations: rows of counts that are made together."""
        classes = self.spec.num_classes
        starts = range(0, len(counts), classes)
        sizes = self.config.distill.ipc
        rows = [
            _Row(ipc, counts[start : start + classes], made[start : start + classes])
            for ipc, start in zip(sizes if len(starts) > 1 else [max(sizes)], starts, strict=True)
        ]
        return [rows] if distiller_of(self.config).cotrains_sizes else [[row] for row in rows]

    def share_key(
        self, rows: Sequence["_Row"], attempt: int, teacher_states: Sequence[State]
    ) -> dict[str, Any]:
        """Return what decides the images of some rows of counts."""
        counts = [list(row.counts) for row in rows]
        return self.batch_key({"counts": counts}, rows, attempt, teacher_states)

    def batch_key(
        self,
        parts: Mapping[str, Any],
        rows: Sequence["_Row"],
        attempt: int,
        teacher_states: Sequence[State],
    ) -> dict[str, Any]:
        """Return what decides images, however many are asked for, beside what is in the parts."""
        models = self.config.teachers_of(self.partition_id)
        return self._key(
            path=("recover", self.partition_id, attempt),
            made=[list(row.made) for row in rows],
            models=[asdict(model) for model in models],
            teachers=[store.digest(state) for state in teacher_states],
            distill=asdict(replace(self.config.distill, ipc=(1,))),
            **parts,
        )

    def _optimise(
        self,
        rows: Sequence["_Row"],
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
            return Batch(found.tensors["images"], _curve(found))

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


def _spared(artefact: Artefact) -> float:
    """Return the seconds that parts of an artefact took when they were made before."""
    return float(artefact.notes.get("spared", 0.0))


def _curve(artefact: Artefact) -> list[tuple[int, float]]:
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
