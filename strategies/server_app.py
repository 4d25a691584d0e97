"""The ServerApp: it composes data, strategy, evaluation and tracking into one experiment."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, Literal

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedistill import (
    comparison,
    config_file,
    data,
    deployment,
    evaluation,
    partition,
    results,
    tracking,
    training,
)
from fedistill.config import Config
from fedistill.cores import set_threads
from fedistill.errors import ClientsFailed, FedistillError, UserError, WorkerDied
from fedistill.evaluation import Evaluator, Scores
from fedistill.image_cache import Splits
from fedistill.images import DataSpec
from fedistill.locking import exclusive
from fedistill.partition import Partition
from fedistill.progress import Progress, to_log
from fedistill.store import Store
from fedistill.sweep_record import SweepRecord
from fedistill.tracking import Journal, MlflowSink
from fedistill.training import device_for, resolve_precision
from strategies import fedavg, row_bytes
from strategies.base import FedDistill
from strategies.distributed_boosting import DistributedBoosting
from strategies.integrate import Integrate
from strategies.kept import KeptReplies
from strategies.mib import MixtureBottleneck
from strategies.recorder import Recorder
from strategies.tested_at_home import TestersAtHome

app = ServerApp()

_LAST_DELIVERY_S = 60.0  # how long a finished run waits for MLflow


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment, or all that are left of a sweep; the run config names the folder."""
    run_config = {key: str(value) for key, value in context.run_config.items()}
    for handler in logging.getLogger("flwr").handlers:  # our warnings then look like Flower's,
        logging.getLogger("fedistill").addHandler(handler)  # which the command shows
    if run_config.get("deployment"):
        _deployed(run_config, grid)
        return
    output = Path(run_config["output-dir"])
    if run_config.get("sweep"):
        _sweep(output, run_config, grid)
        return
    config = config_file.loads(run_config["config-yaml"])
    try:
        _tracked(config, output, run_config, grid)
    except Exception as error:
        results.write_failure(output, error)
        raise


def _deployed(run_config: Mapping[str, str], grid: Grid) -> None:
    """Run an experiment on devices, or go on with one whose ServerApp has died."""
    try:
        config = config_file.loads(run_config["config-yaml"])
        deployment.check(config)
        output = deployment.folder_of(run_config["deployment"])
        output.mkdir(parents=True, exist_ok=True)
        with exclusive(output, "the run"):
            _deployed_in(output, config, run_config, grid)
    except FedistillError as error:
        log(INFO, "%s", results.failure_line(error))  # the operator sees our log, not our disk
        raise


def _deployed_in(output: Path, config: Config, run_config: Mapping[str, str], grid: Grid) -> None:
    found = deployment.open_on_server(output, run_config["config-yaml"])
    failed = found is deployment.Place.FAILED
    kept = KeptReplies(output / deployment.REPLIES, mended=failed)
    if found is deployment.Place.DONE:
        log(INFO, "the run has its result from before")
        tracking.close_if_open(output, "FINISHED", send=config.tracking.enabled)
    else:
        uri = run_config["tracking-uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        own = {
            "tracking-uri": uri or tracking.default_uri(output.parent),
            "started-at": str(kept.begun),
        }
        try:
            _tracked(config, output, {**run_config, **own}, grid, kept)
        except (ClientsFailed, UserError) as error:  # what can be mended, not what broke
            results.write_failure(output, error)
            raise
    kept.clear()


def _sweep(folder: Path, run_config: Mapping[str, str], grid: Grid) -> None:
    """Run one federation after the other; one that fails is noted, and the next one begins."""
    config = config_file.load(folder / results.CONFIG)
    sweep = comparison.read(folder)
    left = [run for run in sweep["runs"] if run["status"] == "todo"]
    journal = Journal(folder)
    record = SweepRecord(folder, config, journal)
    source = json.loads(run_config["source-json"])
    record.start(run_config["dataset"], run_config["tracking-uri"], source)
    sink = MlflowSink(folder, warn=lambda text: log(WARNING, text))
    if config.tracking.enabled:
        sink.start()
    progress = Progress("sweep")
    own = {**source, "sweep_id": sweep["sweep_id"]}
    done, total = 0, sum(run["work"] for run in left)
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        for number, run in enumerate(left, start=1):
            progress.report("sweep", done, total, f"{number} of {len(left)}: {run['folder']}")
            output = folder / run["folder"]
            now = {"started-at": str(time.time()), "source-json": json.dumps(own)}
            try:
                one = config_file.load(output / results.CONFIG)
                _tracked(one, output, {**run_config, **now}, grid)
            except WorkerDied:  # nothing that this simulation says can be relied on any more
                raise
            except Exception as error:
                results.write_failure(output, error)
                log(WARNING, "%s failed and is left out: %s", run["folder"], error)
            record.update()
            done += run["work"]
        progress.report("sweep", total, total)
        status = "FINISHED"
    finally:
        journal.end(status)
        sink.close(_LAST_DELIVERY_S)


def choose_strategy(config: Config) -> type[FedDistill]:
    """Return the strategy that labels in the way the config asks for, or trains sets together."""
    if config.cotrain is not None:
        return MixtureBottleneck
    for strategy in (Integrate, DistributedBoosting):
        if config.relabel.name in strategy.labels:
            return strategy
    raise AssertionError(config.relabel.name)


def _tracked(
    config: Config,
    output: Path,
    run_config: Mapping[str, str],
    grid: Grid,
    kept: KeptReplies | None = None,
) -> None:
    """Run an experiment with a journal that is closed whatever happens."""
    journal = Journal(output)
    experiment = Experiment(config, output, journal, float(run_config["started-at"]), kept)
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
        nets = list(strategy.teachers.values())
        evaluator, answers = self.evaluator, list[Tensor]()
        if self.config.evaluate.at == "clients":  # nothing is tested here, teachers neither
            evaluator = replace(evaluator, elsewhere=self._testers(grid).test)
        else:
            answers = evaluator.answers(nets)
        top1 = [training.top1(logits, self.data.test.labels) for logits in answers]
        self.teacher_top1 = dict(zip(strategy.teachers, top1, strict=False))
        self.record.clients(strategy, self.teacher_top1)
        metrics: dict[str, int | float | list[int] | list[float]] = {}
        for ipc, scores in evaluation.score_all(
            evaluator,
            strategy.sets,
            self.data.train,
            self._shards,
            {client: sum(held) for client, held in strategy.histograms.items()},
            {client: strategy.teachers.get(client) for client in sorted(strategy.shares)},
            answers,
            strategy.refine,
            lambda done, total: self.progress.report("evaluate", done, total, ""),
            rival.scores,
        ):
            scores = replace(
                scores,
                traffic=row_bytes.of_set(strategy, ipc),
                notes={name: self._notes(ipc, name, rival) for name in scores.baselines},
            )
            self.scores[ipc] = scores
            self.record.scores(ipc, strategy.sets[ipc], scores, top1)
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
        found = fedavg.run(grid, nodes, self.evaluator, self.progress.report)
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
