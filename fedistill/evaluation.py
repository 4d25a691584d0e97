"""What a set is worth: students and baselines under one protocol, all seeds side by side."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedistill import baselines, student
from fedistill.config import Config, ModelConfig
from fedistill.images import DataSpec, ImageSet
from fedistill.relabel import view_options
from fedistill.sets import SyntheticSet
from fedistill.slots import Plan
from fedistill.student import Curve, Score
from fedistill.training import logits_of, side_by_side

Report = Callable[[int, int], None]
Job = Callable[[Report], tuple[float, Curve]]


@dataclass(frozen=True)
class Scores:
    """Accuracy of one set.

    Attributes:
        students: by name of the model.
        baselines: by name; `hard_label` and `random` train the first student model.
    """

    students: Mapping[str, Score]
    baselines: Mapping[str, Score] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json holds."""
        return {
            "students": {name: score.as_dict() for name, score in self.students.items()},
            "baselines": {name: score.as_dict() for name, score in self.baselines.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Everything that scoring a set needs beside the set.

    Attributes:
        config: of the experiment.
        spec: of the data set.
        test: the split that students are tested on.
        device: where to train.
        dtype: of the convolutions.
    """

    config: Config
    spec: DataSpec
    test: ImageSet
    device: torch.device
    dtype: torch.dtype

    def answers(self, teachers: Sequence[nn.Module]) -> list[Tensor]:
        """Return each teacher's logits for the test split, [T, num_classes]."""
        images = self.test.images
        jobs = [partial(logits_of, net, images, self.spec, self.dtype) for net in teachers]
        return side_by_side(jobs, self.device)

    def score(
        self,
        synthetic: SyntheticSet,
        rivals: Mapping[str, SyntheticSet],
        train: ImageSet | None,
        report: Report = lambda done, total: None,
    ) -> Scores:
        """Train and test students of every model on a set, and the baselines.

        Args:
            synthetic: the set, with soft labels.
            rivals: by name of the baseline, other sets for the same students.
            train: all real data, for the baseline `full_data`; None: not wanted.
            report: called with epochs done and epochs in all.
        """
        first, *_ = self.config.student.networks
        rows: dict[tuple[str, str], list[Job]] = {}
        if train is not None:
            rows["baselines", "full_data"] = self._seeds(partial(self._full_data, train, first))
        for name, model in self._named_models():
            rows["students", name] = self._seeds(partial(self._student, synthetic, model))
        for name, rival in rivals.items():
            rows["baselines", name] = self._seeds(partial(self._student, rival, first))
        jobs = [job for row in rows.values() for job in row]
        results = iter(self._run(jobs, report))
        found: dict[str, dict[str, Score]] = {"students": {}, "baselines": {}}
        for (kind, name), row in rows.items():
            outcomes = [next(results) for _ in row]
            found[kind][name] = Score([top1 for top1, _ in outcomes], [c for _, c in outcomes])
        return Scores(found["students"], found["baselines"])

    def _named_models(self) -> list[tuple[str, ModelConfig]]:
        """Name the student models; of two with one name the second is `name-2`."""
        named: dict[str, ModelConfig] = {}
        for model in self.config.student.networks:
            taken = sum(other.name == model.name for other in named.values())
            named[f"{model.name}-{taken + 1}" if taken else model.name] = model
        return list(named.items())

    def _seeds(self, train_and_test: Callable[[int, Report], tuple[float, Curve]]) -> list[Job]:
        return [partial(train_and_test, number) for number in range(self.config.student.seeds)]

    def _run(self, jobs: Sequence[Job], report: Report) -> list[tuple[float, Curve]]:
        """Run the jobs, adding up their progress."""
        done = [0.0] * len(jobs)
        lock = threading.Lock()

        def tell(number: int, epochs: int, total: int) -> None:
            with lock:
                done[number] = epochs / total
                report(round(100 * sum(done)), 100 * len(jobs))

        ready = [partial(job, partial(tell, number)) for number, job in enumerate(jobs)]
        # Larger networks fill all cores by themselves, and may draw from the global generator.
        if all(model.name == "convnet" for _, model in self._named_models()):
            return side_by_side(ready, self.device)
        return [job() for job in ready]

    def _student(
        self, synthetic: SyntheticSet, model: ModelConfig, number: int, report: Report
    ) -> tuple[float, Curve]:
        return student.train_and_test(
            synthetic,
            self.test,
            model,
            self.config.student,
            view_options(self.config.relabel, self.spec),
            seed=self.config.seed,
            number=number,
            device=self.device,
            dtype=self.dtype,
            report=report,
        )

    def _full_data(
        self, train: ImageSet, model: ModelConfig, number: int, report: Report
    ) -> tuple[float, Curve]:
        return baselines.full_data(
            train,
            self.test,
            self.spec,
            model,
            self.config.teacher,
            seed=self.config.seed,
            number=number,
            device=self.device,
            dtype=self.dtype,
            report=report,
        )


def score_all(
    evaluator: Evaluator,
    sets: Mapping[int, SyntheticSet],
    plans: Mapping[int, Plan],
    answers: Sequence[Tensor],
    train: ImageSet,
    shards: Sequence[Tensor],
    refine: Callable[[SyntheticSet], SyntheticSet],
    report: Report = lambda done, total: None,
) -> Iterator[tuple[int, Scores]]:
    """Score the set of each IPC, with the baselines of the config beside it.

    What is the same for every set, the ensemble and the training on all data, is done once.

    Args:
        evaluator: trains and tests.
        sets: by IPC, with soft labels.
        plans: by IPC, who made what.
        answers: of all clients' teachers to the test split, for the baseline `ensemble`.
        train: the training split.
        shards: indices into it of each partition id.
        refine: labels a set in the way the distilled ones were labelled.
        report: called with epochs done and epochs in all of one set.
    """
    wanted = evaluator.config.baselines
    once = {}
    if "ensemble" in wanted:
        once["ensemble"] = baselines.ensemble(answers, evaluator.test.labels)
    full_data = train if "full_data" in wanted else None
    for ipc, synthetic in sets.items():
        sets_beside = rivals(evaluator.config, synthetic, train, shards, plans[ipc], refine)
        found = evaluator.score(synthetic, sets_beside, full_data, report)
        if full_data is not None:
            once["full_data"] = found.baselines["full_data"]
            full_data = None
        rows = {**found.baselines, **once}
        yield ipc, Scores(found.students, {name: rows[name] for name in wanted})


def rivals(
    config: Config,
    synthetic: SyntheticSet,
    train: ImageSet,
    shards: Sequence[Tensor],
    plan: Plan,
    refine: Callable[[SyntheticSet], SyntheticSet],
) -> dict[str, SyntheticSet]:
    """Make the sets of the baselines that train students.

    Args:
        config: names the baselines.
        synthetic: the distilled set.
        train: the training split.
        shards: indices into it of each partition id.
        plan: who made what.
        refine: labels a set in the way the distilled one was labelled.
    """
    found = {}
    if "random" in config.baselines:
        drawn = baselines.random_set(
            train, dict(enumerate(shards)), plan, synthetic.spec, config.seed
        )
        found["random"] = refine(drawn)
    if "hard_label" in config.baselines:
        found["hard_label"] = baselines.hard_label_set(synthetic)
    return found
