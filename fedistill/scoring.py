"""The scores of the sets of a run, each with the rows beside it that the config asks for."""

import logging
from collections.abc import Generator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

from torch import Tensor, nn

from fedistill import baselines, rivals
from fedistill.config import Config
from fedistill.config_students import ENSEMBLES
from fedistill.evaluation import Evaluator, Report, Row
from fedistill.fusion import Histograms, class_weights
from fedistill.images import ImageSet
from fedistill.ranking import Ranking
from fedistill.rivals import Refine
from fedistill.rows import names
from fedistill.sets import SyntheticSet
from fedistill.student import Score

_log = logging.getLogger(__name__)


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


def score_all(
    evaluator: Evaluator,
    sets: Mapping[int, SyntheticSet],
    train: ImageSet,
    shards: Sequence[Tensor],
    histograms: Histograms,
    teachers: Mapping[int, nn.Module | None],
    answers: Mapping[int, Tensor],
    refine: Refine,
    report: Report = lambda done, total: None,
    beside: Mapping[str, Score] | None = None,
) -> Generator[tuple[int, Scores], None, None]:
    """Score the set of each IPC, with the rows beside it that the config asks for.

    What is the same for every set, such as the ensemble and the training on all data, is done
    once. Students of all sizes are trained side by side, those of the largest set first: they take
    longest, and the others fill the cores beside them.

    Args:
        evaluator: trains and tests.
        sets: by IPC, with soft labels.
        train: the training split.
        shards: indices into it of each partition id.
        histograms: how many images of each class every client has.
        teachers: of the clients that took part, by partition id, each as one network; None: it
            has stayed at home.
        answers: of these teachers to the test split, by partition id. Who says anything that is
            not finite is in no ensemble and no average, and neither is who is left out here.
        refine: labels a set with such views as a config says, as the distilled ones were labelled.
        report: called with the views that students have been shown, and all of them.
        beside: rows of every set that were had in another way, by name.

    Yields:
        The IPC and its scores, the largest first, each when it is there.
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
    once = {**(beside or {}), **_without_a_set(evaluator, wanted, histograms, teachers, answers)}
    sizes = sorted(sets, reverse=True)
    rows: dict[tuple[int, str, str], Row] = {}
    if "full_data" in wanted - once.keys():
        rows[sizes[0], "beside", "full_data"] = evaluator.full_data(train, first)
    for ipc in sizes:
        synthetic = sets[ipc]
        for name, row in evaluator.students(synthetic).items():
            rows[ipc, "students", name] = row
        for name, source in rivals.sources(config, synthetic, wanted, tasks, refine).items():
            rows[ipc, "beside", name] = evaluator.student(source, first, len(synthetic))
    scored = evaluator.score(rows, report)
    for ipc in sizes:
        found: dict[str, dict[str, Score]] = {"students": {}, "beside": {}}
        for (_, kind, name), score in islice(scored, sum(of == ipc for of, *_ in rows)):
            found[kind][name] = score
        students, others = found["students"], found["beside"]
        if "full_data" in others:
            once["full_data"] = others["full_data"]
        others |= once
        chosen: dict[str, Score] = {n: others[n] for n in names(config) if n in others}
        yield ipc, Scores(students, chosen, _ranking(config, students, others))


def _without_a_set(
    evaluator: Evaluator,
    wanted: Set[str],
    histograms: Histograms,
    teachers: Mapping[int, nn.Module | None],
    answers: Mapping[int, Tensor],
) -> dict[str, Score]:
    """Score the rows that are made of the teachers alone."""
    heard = {client: said for client, said in answers.items() if bool(said.isfinite().all())}
    if not heard:
        if rows := sorted(wanted & {*ENSEMBLES, "weight_average"}):
            _log.warning("left out, as no teacher says anything finite: %s", ", ".join(rows))
        return {}
    found = {}
    said = [*heard.values()]
    if "ensemble" in wanted:
        found["ensemble"] = baselines.ensemble(said, evaluator.split.labels)
    for name in wanted & baselines.WEIGHTED.keys():
        weights = class_weights(histograms, [*heard])
        found[name] = baselines.weighted_ensemble(name, said, weights, evaluator.split.labels)
    if "weight_average" in wanted:
        here = {n: net for n, net in teachers.items() if net is not None and n in heard}
        samples = {client: sum(held) for client, held in histograms.items()}
        found["weight_average"] = evaluator.weight_average(samples, here)
    return found


def _ranking(
    config: Config, students: Mapping[str, Score], others: Mapping[str, Score]
) -> Ranking | None:
    if not config.student.ranking or "random" not in others:
        return None
    distilled, *_ = students.values()
    rows = {"distilled": distilled, **others}
    return Ranking(**{field.name: rows[field.name] for field in fields(Ranking)})
