"""The ServerApp: one experiment, or those of a sweep, in a simulation or on devices.

Each has a journal that is closed whatever happens, and a folder that says how it ended.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import INFO, WARNING
from pathlib import Path
from typing import Literal

from flwr.app import Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from fedistill import (
    comparison,
    config_file,
    deployment,
    results,
    tracking,
)
from fedistill.config import Config
from fedistill.errors import ClientsFailed, FedistillError, UserError, WorkerDied
from fedistill.locking import exclusive
from fedistill.progress import Progress
from fedistill.sweep_record import SweepRecord
from fedistill.tracking import Journal, MlflowSink
from strategies.experiment import Experiment
from strategies.kept import KeptReplies

app = ServerApp()

_LAST_DELIVERY_S = 60.0  # how long a finished run waits for MLflow


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment, or all that are left of a sweep; the run config names the folder."""
    run_config = {key: str(value) for key, value in context.run_config.items()}
    with _shown_like_flowers():
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


@contextmanager
def _shown_like_flowers() -> Iterator[None]:
    """Let what our modules warn of look like what Flower says, which the command shows.

    Only for this run: a local one is in the process of its caller, whose logger stays as it was.
    """
    ours = logging.getLogger("fedistill")
    before = ours.handlers
    ours.handlers = list(dict.fromkeys([*before, *logging.getLogger("flwr").handlers]))
    try:
        yield
    finally:
        ours.handlers = before


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
    uri = run_config["tracking-uri"] or os.environ.get("MLFLOW_TRACKING_URI")
    if found is deployment.Place.DONE:
        log(INFO, "the run has its result from before")
        tracking.close_if_open(output, "FINISHED", send=False)
        if config.tracking.enabled:  # it may have been away when the run ended
            try:
                tracking.deliver(output, uri, lambda text: log(WARNING, text))
            except UserError as error:
                log(WARNING, "%s", error)
    else:
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
            tags = {**own, "variant": run["distiller"]}  # the method, and what is varied
            now = {"started-at": str(time.time()), "source-json": json.dumps(tags)}
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
        if all(run["status"] == "done" for run in comparison.read(folder)["runs"]):
            status = "FINISHED"
    finally:
        journal.end(status)
        sink.close(_LAST_DELIVERY_S)


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
