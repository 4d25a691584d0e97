"""One run: the federation, its evaluation, and everything written down."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor

from fedistill import (
    data,
    partition,
    scoring,
    training,
)
from fedistill.config import Config
from fedistill.cores import set_threads
from fedistill.evaluation import Evaluator
from fedistill.image_cache import Splits
from fedistill.images import DataSpec
from fedistill.partition import Partition
from fedistill.progress import Progress, to_log
from fedistill.scoring import Scores
from fedistill.store import Store
from fedistill.tracking import Journal
from fedistill.training import device_for, resolve_precision
from strategies import fedavg, row_bytes
from strategies.base import FedDistill
from strategies.distributed_boosting import DistributedBoosting
from strategies.integrate import Integrate
from strategies.kept import KeptReplies
from strategies.mib import MixtureBottleneck
from strategies.recorder import Recorder
from strategies.tested_at_home import TestersAtHome


def choose_strategy(config: Config) -> type[FedDistill]:
    """Return the strategy that labels in the way the config asks for, or trains sets together."""
    if config.cotrain is not None:
        return MixtureBottleneck
    for strategy in (Integrate, DistributedBoosting):
        if config.relabel.name in strategy.labels:
            return strategy
    raise AssertionError(config.relabel.name)


class Experiment:
    """One run, from the clients' shares to result.json; with `kept` on a deployment."""

    def __init__(
        self,
        config: Config,
        output: Path,
        journal: Journal,
        started_at: float,
        kept: KeptReplies | None = None,
    ) -> None:
        self.started_at = started_at
        set_threads()
        self.config = config
        # Devices share no file with us: what the operator sees comes through the log.
        on_event = to_log(lambda line: log(INFO, "%s", line)) if kept else None
        self.progress = Progress("server", on_event=on_event)
        self.data = (data.load_server if kept else data.load)(config.data, config.seed)
        # Images that devices alone have: their mean and deviation are known when all have spoken.
        spec_of = None if len(self.data.train) else self._spec_of
        self.record = Recorder(config, output, self.data, journal)
        device = device_for(1.0)
        dtype = resolve_precision(config.precision, device)
        store = Store.from_environment()
        if kept is not None and store.folder is None:
            store = Store(kept.folder)  # students, too, are trained once
        self.evaluator = Evaluator(
            config=config,
            spec=self.data.spec,
            test=self.data.test,
            device=device,
            dtype=dtype,
            store=store,
        )
        self.strategy = choose_strategy(config)(
            config,
            self.data.spec,
            device=device,
            dtype=dtype,
            report=self.progress.report,
            kept=kept,
            spec_of=spec_of,
        )
        self.partition = None if kept else self._split()
        self.scores: dict[int, Scores] = {}
        self.teacher_top1: dict[int, float] = {}
        self.evaluate_seconds = 0.0
        self.fedavg_seconds = 0.0

    def _spec_of(self, pixels: Sequence[Sequence[Sequence[int]]]) -> DataSpec:
        """Give everything the spec of the devices' images."""
        test = self.data.test
        known = Splits(
            self.data.spec.class_names, test.images[:0], test.labels[:0], test.images, test.labels
        )
        spec = data.spec_from(self.config.data, known, pixels)
        self.data = replace(self.data, spec=spec)
        self.record = replace(self.record, data=self.data)
        self.evaluator = replace(self.evaluator, spec=spec)
        return spec

    def _split(self) -> Partition:
        labels, classes = self.data.train.labels, self.data.spec.num_classes
        return partition.split(labels, classes, self.config.partition, self.config.seed)

    @property
    def _shards(self) -> Sequence[Tensor]:
        """Indices of each client's images; nothing on a deployment, whose images we do not see."""
        return self.partition.indices if self.partition else ()

    def run(self, grid: Grid) -> None:
        """Run the federation, evaluate, and write everything down."""
        if self.partition is not None:
            self.record.partition(self.partition)
        self.strategy.summary()
        self.strategy.start(grid, evaluate_fn=partial(self.evaluate, grid))
        self.record.result(self.strategy, self.scores, self.teacher_top1, self._seconds())
        if self.partition is None:
            self.record.everything()
        self.progress.report("done", 1, 1, "")

    def evaluate(self, grid: Grid, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Save the sets, score them and the teachers: Flower's central evaluation."""
        strategy = self.strategy
        if self.partition is None:
            self.record.holdings(strategy.histograms)
        self.record.sets(strategy)
        rival = self._fedavg(grid)
        started = time.perf_counter()
        evaluator, answers = self.evaluator, dict[int, Tensor]()
        if self.config.evaluate.at == "clients":  # nothing is tested here, teachers neither
            evaluator = replace(evaluator, elsewhere=self._testers(grid).test)
        else:
            answers = evaluator.answers(strategy.teachers)
        labels = self.data.test.labels
        self.teacher_top1 = {n: training.top1(said, labels) for n, said in answers.items()}
        self.record.clients(strategy, self.teacher_top1)
        teachers = [*self.teacher_top1.values()]
        metrics: dict[str, int | float | list[int] | list[float]] = {}
        every = scoring.score_all(
            evaluator,
            strategy.sets,
            self.data.train,
            self._shards,
            strategy.histograms,
            {client: strategy.teachers.get(client) for client in sorted(strategy.shares)},
            {n: said for n, said in answers.items() if n not in strategy.unheard},
            strategy.refine,
            lambda done, total: self.progress.report("evaluate", done, total, ""),
            rival.scores,
        )
        with closing(every):  # whatever happens, no student is left running
            for ipc, scores in every:
                scores = replace(
                    scores,
                    traffic=row_bytes.of_set(strategy, ipc),
                    notes={name: self._notes(ipc, name, rival) for name in scores.baselines},
                )
                self.scores[ipc] = scores
                self.record.scores(ipc, strategy.sets[ipc], scores, teachers)
                for name, score in scores.students.items():
                    metrics[f"ipc-{ipc}/{name}/top1-mean"] = score.mean
        self.evaluate_seconds = time.perf_counter() - started
        return MetricRecord(metrics)

    def _testers(self, grid: Grid) -> TestersAtHome:
        strategy = self.strategy
        told = {n: it for n, it in strategy.descriptions.items() if n not in strategy.failures}
        return TestersAtHome(self.config, self.data.spec, strategy.exchange, grid, told)

    def _fedavg(self, grid: Grid) -> fedavg.Found:
        """Let the clients that took part play the rival, if it is asked for."""
        if "fedavg" not in self.config.baselines:
            return fedavg.Found()
        started = time.perf_counter()
        exchange = self.strategy.exchange
        exchange.find(self.strategy.shares)
        nodes = {n: node for n, node in exchange.nodes.items() if n not in exchange.failures}
        if not nodes:
            log(WARNING, "fedavg is left out: no device is there any more")
            return fedavg.Found()
        report, simulated = self.progress.report, exchange.simulated
        found = fedavg.run(grid, nodes, self.evaluator, report, simulated=simulated)
        self.record.journal.curve("fedavg/top1", found.top1)
        self.fedavg_seconds = time.perf_counter() - started
        return found

    def _notes(self, ipc: int, name: str, rival: fedavg.Found) -> dict[str, Any]:
        """Return what result.json says of a row beside its scores."""
        if name in rival.notes:
            return rival.notes[name]
        found = row_bytes.of_row(self.strategy, ipc, name, self.data.train, self._shards)
        return {"bytes": found}

    def _seconds(self) -> dict[str, float]:
        """Client stages are summed over the clients; the others are wall time.

        The total counts from the command's start, so it holds the start of Flower too.
        """
        shares = self.strategy.shares.values()
        return {
            "squeeze": sum(share.seconds["squeeze"] for share in shares),
            "recover": sum(share.seconds["recover"] for share in shares),
            "relabel": self.strategy.seconds["relabel"],
            "cotrain": self.strategy.seconds["cotrain"],
            "evaluate": self.evaluate_seconds,
            **({"fedavg": self.fedavg_seconds} if self.fedavg_seconds else {}),
            "total": time.time() - self.started_at,
        }
