"""The ServerApp: it composes data, strategy, evaluation and tracking into one experiment."""

import json
import logging
import time
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from fedistill import config_file, data, evaluation, partition, results, training
from fedistill.config import Config
from fedistill.cores import set_threads
from fedistill.evaluation import Evaluator, Scores
from fedistill.progress import Progress
from fedistill.store import Store
from fedistill.tracking import Journal, MlflowSink
from fedistill.training import device_for, resolve_precision
from strategies.base import FedDistill
from strategies.distributed_boosting import DistributedBoosting
from strategies.integrate import Integrate
from strategies.mib import MixtureBottleneck
from strategies.recorder import Recorder

app = ServerApp()

_LAST_DELIVERY_S = 60.0  # how long a finished run waits for MLflow


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; results go to the output folder that the run config names."""
    config = config_file.loads(str(context.run_config["config-yaml"]))
    output = Path(str(context.run_config["output-dir"]))
    for handler in logging.getLogger("flwr").handlers:  # our warnings then look like Flower's,
        logging.getLogger("fedistill").addHandler(handler)  # which the command shows
    try:
        run_config = {key: str(value) for key, value in context.run_config.items()}
        _tracked(config, output, run_config, grid)
    except Exception as error:
        results.write_failure(output, error)
        raise


def choose_strategy(config: Config) -> type[FedDistill]:
    """Return the strategy that labels in the way the config asks for, or trains sets together."""
    if config.cotrain is not None:
        return MixtureBottleneck
    for strategy in (Integrate, DistributedBoosting):
        if config.relabel.name in strategy.labels:
            return strategy
    raise AssertionError(config.relabel.name)


def _tracked(config: Config, output: Path, run_config: Mapping[str, str], grid: Grid) -> None:
    """Run an experiment with a journal that is closed whatever happens."""
    journal = Journal(output)
    experiment = Experiment(config, output, journal, float(run_config["started-at"]))
    source = json.loads(run_config["source-json"])
    experiment.record.start(run_config["tracking-uri"], source)
    sink = MlflowSink(output, warn=lambda text: log(WARNING, text))
    if config.tracking.enabled:
        sink.start()
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        experiment.run(grid)
        status = "FINISHED"
    finally:
        journal.end(status)
        sink.close(_LAST_DELIVERY_S)
        experiment.record.where_in_mlflow()


class Experiment:
    """One run, from the clients' shares to result.json."""

    def __init__(self, config: Config, output: Path, journal: Journal, started_at: float) -> None:
        self.started_at = started_at
        set_threads()
        self.config = config
        self.progress = Progress("server")
        self.data = data.load(config.data, config.seed)
        self.record = Recorder(config, output, self.data, journal)
        device = device_for(1.0)
        dtype = resolve_precision(config.precision, device)
        self.evaluator = Evaluator(
            config=config,
            spec=self.data.spec,
            test=self.data.test,
            device=device,
            dtype=dtype,
            store=Store.from_environment(),
        )
        self.strategy = choose_strategy(config)(
            config, self.data.spec, device=device, dtype=dtype, report=self.progress.report
        )
        self.partition = partition.split(
            self.data.train.labels, self.data.spec.num_classes, config.partition, config.seed
        )
        self.scores: dict[int, Scores] = {}
        self.teacher_top1: dict[int, float] = {}
        self.evaluate_seconds = 0.0

    def run(self, grid: Grid) -> None:
        """Run the federation, evaluate, and write everything down."""
        self.record.partition(self.partition)
        self.strategy.summary()
        self.strategy.start(grid, evaluate_fn=self.evaluate)
        self.record.result(self.strategy, self.scores, self.teacher_top1, self._seconds())
        self.progress.report("done", 1, 1, "")

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Save the sets, score them and the teachers: Flower's central evaluation."""
        started = time.perf_counter()
        self.record.sets(self.strategy)
        strategy = self.strategy
        nets = list(strategy.teachers.values())
        answers = self.evaluator.answers(nets)
        top1 = [training.top1(logits, self.data.test.labels) for logits in answers]
        self.teacher_top1 = dict(zip(strategy.teachers, top1, strict=True))
        self.record.clients(strategy, self.teacher_top1)
        metrics: dict[str, int | float | list[int] | list[float]] = {}
        for ipc, scores in evaluation.score_all(
            self.evaluator,
            strategy.sets,
            self.data.train,
            self.partition.indices,
            {client: strategy.teachers.get(client) for client in sorted(strategy.shares)},
            answers,
            strategy.refine,
            lambda done, total: self.progress.report("evaluate", done, total, ""),
        ):
            self.scores[ipc] = scores
            self.record.scores(ipc, strategy.sets[ipc], scores, top1)
            for name, score in scores.students.items():
                metrics[f"ipc-{ipc}/{name}/top1-mean"] = score.mean
        self.evaluate_seconds = time.perf_counter() - started
        return MetricRecord(metrics)

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
            "total": time.time() - self.started_at,
        }
