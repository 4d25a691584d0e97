"""What a set is worth: students and baselines under one protocol, all seeds side by side."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fedistill import baselines, rivals, store, student
from fedistill.config import Config, ModelConfig
from fedistill.counts import Pooled
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.ranking import Ranking
from fedistill.relabel import view_options
from fedistill.rivals import Refine, Source
from fedistill.rows import names
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


Row = Callable[[int, Report], Trained]  # trains and tests the student of a number


@dataclass(frozen=True)
class Scores:
    """Accuracy of one set.

    Attributes:
        students: by name of the model.
        baselines: by name; those that train students train the first student model.
        ranking: DD-Ranking's scores, where they are asked for.
        traffic: bytes of messages, up and down, that the set took, where there were messages.
        notes: what else there is to say of a baseline, such as its bytes, by name.
    """

    students: Mapping[str, Score]
    baselines: Mapping[str, Score] = field(default_factory=dict)
    ranking: Ranking | None = None
    traffic: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json holds."""
        ranking = {} if self.ranking is None else {"ranking": self.ranking.as_dict()}
        return {
            "students": {name: score.as_dict() for name, score in self.students.items()},
            "baselines": {
                name: {**score.as_dict(), **self.notes.get(name, {})}
                for name, score in self.baselines.items()
            },
            **({"traffic": dict(self.traffic)} if self.traffic else {}),
            **ranking,
        }


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

    def answers(self, teachers: Sequence[nn.Module]) -> list[Tensor]:
        """Return each teacher's logits for the test split, [T, num_classes]."""
        images = self.split.images
        jobs = [partial(logits_of, net, images, self.spec, self.dtype) for net in teachers]
        return side_by_side(jobs, self.device)

    def students(self, synthetic: SyntheticSet) -> dict[str, Row]:
        """Return the rows of students of every model; of two with one name one is `name-2`."""
        named: dict[str, ModelConfig] = {}
        for model in self.config.student.networks:
            taken = sum(other.name == model.name for other in named.values())
            named[f"{model.name}-{taken + 1}" if taken else model.name] = model
        return {
            name: partial(self.student, rivals.always(synthetic), model)
            for name, model in named.items()
        }

    def student(self, source: Source, model: ModelConfig, number: int, report: Report) -> Trained:
        """Train one student on a set and test it."""
        synthetic, recipe = source(number), self.config.student
        views = view_options(self.config.relabel, self.spec)

        def make() -> tuple[nn.Module, Curve]:
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
        return self._trained(make, model, number, key, report)

    def full_data(
        self, train: ImageSet, model: ModelConfig, number: int, report: Report
    ) -> Trained:
        """Train one network on the whole training split, with the teachers' recipe, and test it."""
        recipe = replace(self.config.teacher, count=1, backbones=())

        def make() -> tuple[nn.Module, Curve]:
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
        return self._trained(make, model, number, key, report)

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
        make: Callable[[], tuple[nn.Module, Curve]],
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
            network, curve = make()
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
    ) -> dict[K, Score]:
        """Train and test every row with every seed.

        Args:
            rows: by any name.
            report: called with epochs done and epochs in all.
        """
        numbers = range(self.config.student.seeds)
        found = iter(self._run([partial(row, n) for row in rows.values() for n in numbers], report))
        scores = {}
        for name in rows:
            scores[name] = self._score([next(found) for _ in numbers])
        return scores

    def _score(self, students: Sequence[Trained]) -> Score:
        first, curves = students[0], [student.curve for student in students]
        if self.elsewhere is None:
            top1 = [student.top1 for student in students if student.top1 is not None]
            return Score(top1, curves, first.network)
        networks = [student.network for student in students if student.network is not None]
        found = self.elsewhere(first.model, networks)
        tested = {"images": found.images, "devices": found.devices}
        return Score(found.top1, curves, first.network, tested)

    def _run(self, jobs: Sequence[Callable[[Report], Trained]], report: Report) -> list[Trained]:
        """Run the jobs, adding up their progress."""
        done = [0.0] * len(jobs)
        lock = threading.Lock()

        def tell(number: int, epochs: int, total: int) -> None:
            with lock:
                done[number] = epochs / total
                report(round(100 * sum(done)), 100 * len(jobs))

        ready = [partial(job, partial(tell, number)) for number, job in enumerate(jobs)]
        # Larger networks fill all cores by themselves, and may draw from the global generator.
        if all(model.name == "convnet" for model in self.config.student.networks):
            return side_by_side(ready, self.device)
        return [job() for job in ready]


def score_all(
    evaluator: Evaluator,
    sets: Mapping[int, SyntheticSet],
    train: ImageSet,
    shards: Sequence[Tensor],
    samples: Mapping[int, int],
    teachers: Mapping[int, nn.Module | None],
    answers: Sequence[Tensor],
    refine: Refine,
    report: Report = lambda done, total: None,
    beside: Mapping[str, Score] | None = None,
) -> Iterator[tuple[int, Scores]]:
    """Score the set of each IPC, with the rows beside it that the config asks for.

    What is the same for every set, such as the ensemble and the training on all data, is done
    once.

    Args:
        evaluator: trains and tests.
        sets: by IPC, with soft labels.
        train: the training split.
        shards: indices into it of each partition id.
        samples: how many images each client has.
        teachers: of the clients that took part, by partition id, each as one network; None: it
            has stayed at home.
        answers: of these teachers to the test split, for the baseline `ensemble`.
        refine: labels a set with such views as a config says, as the distilled ones were labelled.
        report: called with epochs done and epochs in all of one set.
        beside: rows of every set that were had in another way, by name.
    """
    config = evaluator.config
    first, *_ = config.student.networks
    wanted: set[str] = {*config.baselines}
    if config.student.ranking:
        wanted |= {field.name for field in fields(Ranking)}
    tasks = []
    if config.coresets:
        where = evaluator.device, evaluator.dtype
        tasks = rivals.tasks(config, evaluator.spec, train, shards, teachers, *where)
    once = dict(beside or {})
    if "ensemble" in wanted:
        once["ensemble"] = baselines.ensemble(answers, evaluator.split.labels)
    if "weight_average" in wanted:
        here = {client: net for client, net in teachers.items() if net is not None}
        once["weight_average"] = evaluator.weight_average(samples, here)
    for ipc, synthetic in sets.items():
        rows: dict[tuple[str, str], Row] = {}
        if "full_data" in wanted - once.keys():
            rows["beside", "full_data"] = partial(evaluator.full_data, train, first)
        for name, row in evaluator.students(synthetic).items():
            rows["students", name] = row
        for name, source in rivals.sources(config, synthetic, wanted, tasks, refine).items():
            rows["beside", name] = partial(evaluator.student, source, first)
        found = evaluator.score(rows, report)
        students = {name: score for (kind, name), score in found.items() if kind == "students"}
        others = {name: score for (kind, name), score in found.items() if kind == "beside"}
        if "full_data" in others:
            once["full_data"] = others["full_data"]
        others |= once
        chosen: dict[str, Score] = {n: others[n] for n in names(config) if n in others}
        yield ipc, Scores(students, chosen, _ranking(config, students, others))


def _ranking(
    config: Config, students: Mapping[str, Score], others: Mapping[str, Score]
) -> Ranking | None:
    if not config.student.ranking or "random" not in others:
        return None
    distilled, *_ = students.values()
    rows = {"distilled": distilled, **others}
    return Ranking(**{field.name: rows[field.name] for field in fields(Ranking)})
