"""What a set is worth: students and baselines under one protocol, all seeds side by side."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fedistill import baselines, rivals, store, student
from fedistill.config import Config, ModelConfig
from fedistill.counts import Pooled
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.relabel import view_options
from fedistill.rivals import Source
from fedistill.sets import SyntheticSet
from fedistill.store import Artefact, Store
from fedistill.student import Curve, Score
from fedistill.teacher import Committee, squeeze
from fedistill.training import accuracy, load_weights, logits_of, side_by_side

Report = Callable[[int, int], None]
# Tests students of one network somewhere else than here.
Elsewhere = Callable[[ModelConfig, Sequence[nn.Module]], Pooled]
K = TypeVar("K")


class Trained(NamedTuple):
    """A student.

    Attributes:
        top1: accuracy in percent; None where it is tested elsewhere.
        curve: (epoch, mean training loss).
        model: which network it is.
        network: itself, where it is kept.
    """

    top1: float | None
    curve: Curve
    model: ModelConfig
    network: nn.Module | None


Job = Callable[[Report], Trained]  # trains and tests a student


@dataclass(frozen=True)
class Row:
    """Students of one kind of data.

    Attributes:
        jobs: makes the jobs of students of some numbers, each with the set that it learns from.
        views: images that each is shown, epoch by epoch.
    """

    jobs: Callable[[Sequence[int]], Iterator[Job]]
    views: int


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Trains students and tests them.

    Attributes:
        config: of the experiment.
        spec: of the data set.
        test: the split that students are tested on; None: there is none here.
        device: where to train.
        dtype: of the convolutions.
        store: students that were trained before are read from here.
        elsewhere: tests students in the place of `test`; None: nobody does.
    """

    config: Config
    spec: DataSpec
    test: ImageSet | None
    device: torch.device
    dtype: torch.dtype
    store: Store = field(default_factory=lambda: Store(None))
    elsewhere: Elsewhere | None = None

    @property
    def split(self) -> ImageSet:
        """The split that is tested on here."""
        assert self.test is not None, "there is no test split on the server"
        return self.test

    def answers(self, teachers: Mapping[int, nn.Module]) -> dict[int, Tensor]:
        """Return each teacher's logits for the test split, [T, num_classes], on the CPU."""
        images = self.split.images
        jobs = [partial(logits_of, net, images, self.spec, self.dtype) for net in teachers.values()]
        found = side_by_side(jobs, self.device)
        return {client: logits.cpu() for client, logits in zip(teachers, found, strict=True)}

    def students(self, synthetic: SyntheticSet) -> dict[str, Row]:
        """Return the rows of students of every model; of two with one name one is `name-2`."""
        named: dict[str, ModelConfig] = {}
        for model in self.config.student.networks:
            taken = sum(other.name == model.name for other in named.values())
            named[f"{model.name}-{taken + 1}" if taken else model.name] = model
        return {
            name: self.student(rivals.one(lambda: synthetic), model, len(synthetic))
            for name, model in named.items()
        }

    def student(self, source: Source, model: ModelConfig, images: int) -> Row:
        """Return the row of students of a source's sets, of so many images."""

        def jobs(numbers: Sequence[int]) -> Iterator[Job]:
            for number, synthetic in zip(numbers, source(numbers), strict=True):
                yield self._student(synthetic, model, number)

        recipe = self.config.student
        assert recipe.epochs is not None
        epochs = student.at_ipc(recipe.epochs, student.ipc_of(images, self.spec.num_classes))
        return Row(jobs, images * epochs)

    def _student(self, synthetic: SyntheticSet, model: ModelConfig, number: int) -> Job:
        recipe = self.config.student
        views = view_options(self.config.relabel, self.spec)

        def make(report: Report) -> tuple[nn.Module, Curve]:
            return student.train(
                synthetic,
                model,
                recipe,
                views,
                seed=self.config.seed,
                number=number,
                device=self.device,
                dtype=self.dtype,
                report=report,
            )

        # What says how many students there are, and of what kinds, decides nothing about one.
        own = replace(recipe, models=(model,), seeds=1, ranking=False, protocol="default")
        key = {"set": synthetic.sha256, "recipe": asdict(own), "views": views.as_dict()}
        return partial(self._trained, make, model, number, key)

    def full_data(self, train: ImageSet, model: ModelConfig) -> Row:
        """Return the row of networks trained on the whole training split, as a teacher is."""
        jobs = partial(map, partial(self._full_data, train, model))
        return Row(jobs, len(train) * self.config.teacher.epochs)

    def _full_data(self, train: ImageSet, model: ModelConfig, number: int) -> Job:
        recipe = replace(self.config.teacher, count=1, backbones=())

        def make(report: Report) -> tuple[nn.Module, Curve]:
            return squeeze(
                train,
                self.spec,
                model,
                recipe,
                seed=self.config.seed,
                path=("full data", number),
                device=self.device,
                dtype=self.dtype,
                report=lambda done, total, loss: report(done, total),
            )

        data = store.digest({"images": train.images, "labels": train.labels})
        key = {"data": data, "model": asdict(model), "recipe": asdict(recipe)}
        return partial(self._trained, make, model, number, key)

    def weight_average(
        self, samples: Mapping[int, int], teachers: Mapping[int, nn.Module]
    ) -> Score:
        """Test the average of the teachers' weights, each weighted by its client's samples.

        Args:
            samples: how many each partition id has.
            teachers: of the clients that took part, by partition id, all of one network.
        """
        members = [
            (member, samples[client])
            for client, net in teachers.items()
            for member in (net.members if isinstance(net, Committee) else [net])
        ]
        states, weights = [net.state_dict() for net, _ in members], [n for _, n in members]
        model = build(self.config.teacher_models[0], self.spec, self.config.seed, "restore")
        load_weights(model, baselines.weight_average(states, weights))
        return Score([accuracy(model.to(self.device), self.split, self.spec, self.dtype)], [])

    def _trained(
        self,
        make: Callable[[Report], tuple[nn.Module, Curve]],
        model: ModelConfig,
        number: int,
        key: Mapping[str, Any],
        report: Report,
    ) -> Trained:
        """Train and test a network, or read from the store how good it was; keep the first one.

        One that is tested elsewhere is kept whatever its number: it will be sent there.
        """
        kept = number == 0 or self.elsewhere is not None

        def tested() -> Artefact:
            network, curve = make(report)
            state = {k: v.cpu() for k, v in network.state_dict().items()} if kept else {}
            if self.elsewhere is not None:
                return Artefact(state, {"curve": curve})
            top1 = accuracy(network, self.split, self.spec, self.dtype)
            return Artefact(state, {"top1": top1, "curve": curve})

        artefact = self.store.recall("student", {**key, **self._surroundings(number)}, tested)
        if artefact.found:
            report(1, 1)
        network = None
        if kept:
            network = build(model, self.spec, self.config.seed, "restore")
            network.load_state_dict(dict(artefact.tensors))
        curve = [(step, loss) for step, loss in artefact.notes["curve"]]
        return Trained(artefact.notes.get("top1"), curve, model, network)

    def _surroundings(self, number: int) -> dict[str, Any]:
        """Return what decides a student beside its set and its recipe."""
        if self.store.folder is None:
            return {}
        return {
            "number": number,
            "seed": self.config.seed,
            "spec": self.spec.as_dict(),
            "test": self._test_digest,
            "device": self.device.type,
            "dtype": str(self.dtype),
            "threads": torch.get_num_threads(),
        }

    @cached_property
    def _test_digest(self) -> str:
        if self.elsewhere is not None:
            return "elsewhere"
        test = {"images": self.split.images, "labels": self.split.labels}
        return store.digest({**test, **self.spec.tensors()})

    def score(
        self, rows: Mapping[K, Row], report: Report = lambda done, total: None
    ) -> Iterator[tuple[K, Score]]:
        """Train and test every row with every seed, all students side by side.

        Args:
            rows: by any name.
            report: called with the views that students have been shown, and all of them.

        Yields:
            Rows in this order, each when it and those before it are there.
        """
        numbers = range(self.config.student.seeds)
        found = self._run([*rows.values()], numbers, report)
        for name in rows:
            yield name, self._score([*islice(found, len(numbers))])

    def _score(self, students: Sequence[Trained]) -> Score:
        first, curves = students[0], [student.curve for student in students]
        if self.elsewhere is None:
            top1 = [student.top1 for student in students if student.top1 is not None]
            return Score(top1, curves, first.network)
        networks = [student.network for student in students if student.network is not None]
        found = self.elsewhere(first.model, networks)
        tested = {"images": found.images, "devices": found.devices}
        return Score(found.top1, curves, first.network, tested)

    def _run(
        self, rows: Sequence[Row], numbers: Sequence[int], report: Report
    ) -> Iterator[Trained]:
        """Train students row by row, adding up their progress.

        Their sets are made here, one after another: to label one takes all cores.
        """
        views = [row.views for row in rows for _ in numbers]
        done = [0] * len(views)
        lock = threading.Lock()

        def tell(place: int, epochs: int, of: int) -> None:
            with lock:
                done[place] = views[place] * epochs // of
                report(sum(done), sum(views))

        every = chain.from_iterable(row.jobs(numbers) for row in rows)
        jobs = (partial(job, partial(tell, place)) for place, job in enumerate(every))
        # Larger networks fill all cores by themselves, and may draw from the global generator.
        if all(model.name == "convnet" for model in self.config.student.networks):
            return side_by_side(jobs, self.device)
        return (job() for job in jobs)
