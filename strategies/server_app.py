"""The ServerApp: it composes data, strategy, evaluation and tracking into one experiment."""

import json
import os
import time
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from fedistill import client, config_file, data, evaluation, partition, results
from fedistill.config import Config
from fedistill.evaluation import Evaluator, Scores
from fedistill.progress import Progress
from fedistill.tracking import Journal, MlflowSink
from fedistill.training import device_for, resolve_precision
from strategies.base import FedDistill
from strategies.distributed_boosting import DistributedBoosting
from strategies.integrate import Integrate
from strategies.recorder import Recorder

app = ServerApp()

_LAST_DELIVERY_S = 60.0  # how long a finished run waits for MLflow


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; results go to the output folder that the run config names."""
    config = config_file.loads(str(context.run_config["config-yaml"]))
    output = Path(str(context.run_config["output-dir"]))
    try:
        source = json.loads(str(context.run_config["source-json"]) or "{}")
        _tracked(config, output, str(context.run_config["tracking-uri"]), source, grid)
    except Exception as error:
        results.write_failure(output, error)
        raise


def choose_strategy(config: Config) -> type[FedDistill]:
    """Return the strategy that labels in the way the config asks for."""
    return Integrate if config.relabel.name == "own" else DistributedBoosting


def _tracked(
    config: Config, output: Path, tracking_uri: str, source: Mapping[str, str], grid: Grid
) -> None:
    """Run an experiment with a journal that is closed whatever happens."""
    journal = Journal(output)
    experiment = Experiment(config, output, journal)
    experiment.record.start(tracking_uri, source)
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


class Experiment:
    """One run, from the clients' shares to result.json."""

    def __init__(self, config: Config, output: Path, journal: Journal) -> None:
        self.started = time.perf_counter()
        client.set_threads(os.cpu_count() or 1)
        self.config = config
        self.progress = Progress("server")
        self.data = data.load(config.data, config.seed)
        self.record = Recorder(config, output, self.data, journal)
        device = device_for(1.0)
        dtype = resolve_precision(config.precision, device)
        self.evaluator = Evaluator(
            config=config, spec=self.data.spec, test=self.data.test, device=device, dtype=dtype
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
        self.record.sets(self.strategy, self.scores)
        self.record.result(self.strategy, self.scores, self.teacher_top1, self._seconds())
        self.progress.report("done", 1, 1, "")

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Score teachers and sets on the test split: Flower's central evaluation."""
        started = time.perf_counter()
        client.set_threads(os.cpu_count() or 1)  # clients of a local run have set their own
        strategy, wanted = self.strategy, self.config.baselines
        nets = list(strategy.teachers.values())
        top1 = self.evaluator.teachers(nets)
        self.teacher_top1 = dict(zip(strategy.teachers, top1, strict=True))
        self.record.clients(strategy.shares, self.teacher_top1)
        once = {"ensemble": self.evaluator.ensemble(nets)} if "ensemble" in wanted else {}
        full_data = self.data.train if "full_data" in wanted else None
        metrics: dict[str, int | float | list[int] | list[float]] = {}
        for ipc, synthetic in strategy.sets.items():
            rivals = evaluation.rivals(
                self.config,
                synthetic,
                self.data.train,
                self.partition.indices,
                strategy.plans[ipc],
                strategy.refine,
            )
            found = self.evaluator.score(synthetic, rivals, full_data, self._report)
            if full_data is not None:  # the same for every set: trained once
                once["full_data"] = found.baselines["full_data"]
                full_data = None
            rows = {**found.baselines, **once}
            self.scores[ipc] = Scores(found.students, {name: rows[name] for name in wanted})
            self.record.scores(ipc, self.scores[ipc], top1)
            for name, score in found.students.items():
                metrics[f"ipc-{ipc}/{name}/top1-mean"] = score.mean
        self.evaluate_seconds = time.perf_counter() - started
        return MetricRecord(metrics)

    def _report(self, done: int, total: int) -> None:
        self.progress.report("evaluate", done, total, "")

    def _seconds(self) -> dict[str, float]:
        """Client stages are summed over the clients; server stages and the total are wall time."""
        shares = self.strategy.shares.values()
        return {
            "squeeze": sum(share.seconds["squeeze"] for share in shares),
            "recover": sum(share.seconds["recover"] for share in shares),
            "relabel": self.strategy.seconds["relabel"],
            "cotrain": 0.0,
            "evaluate": self.evaluate_seconds,
            "total": time.perf_counter() - self.started,
        }
