"""Run an experiment: check it before anything starts, run it on a backend, read what came of it.

Both backends run the same ClientApp and ServerApp: `flower` in a Flower simulation, `local` in
this process. The apps are found by their path, as Flower does; nothing here imports them.
"""

import importlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedistill import client, config_file, data, partition, results, slots, tracking
from fedistill.config import Config
from fedistill.display import ProgressDisplay
from fedistill.errors import PartitionError, RunError, UserError
from fedistill.simulation import Simulation

_PROGRESS = "FEDISTILL_PROGRESS"
_LOG = "log.txt"
_SHOWN = ("WARNING", "ERROR", "CRITICAL")


def default_output(config: Config) -> Path:
    """Return a folder for a run that names none: `runs/NAME-DATE-TIME`."""
    return Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def preflight(config: Config) -> None:
    """Find what would fail later: data, split, classes, models. Decodes the data set once.

    Raises:
        UserError: what is wrong, and what to do.
    """
    loaded = data.load(config.data, config.seed)
    parts = partition.split(
        loaded.train.labels, loaded.spec.num_classes, config.partition, config.seed
    )
    histograms = dict(enumerate(parts.histograms(loaded.train.labels, loaded.spec.num_classes)))
    try:
        slots.allocate(histograms, [1] * loaded.spec.num_classes)
    except LookupError as error:
        name = loaded.spec.class_names[error.args[0]]
        raise PartitionError(
            f"class '{name}' is held by no client, so nobody can distil it; take the class out "
            "of the data set, or raise data.fraction"
        ) from error
    client.check(config, loaded.spec)


def run(config: Config, output: Path, backend: str) -> dict[str, Any]:
    """Run one experiment and return its result.json.

    Args:
        config: of the experiment.
        output: a new or empty folder.
        backend: "flower" or "local".

    Raises:
        UserError: something the user can mend; nothing was overwritten.
        RunError: the run failed.
    """
    output = output.absolute()
    results.check_free(output)
    run_config = {
        "config-yaml": config_file.dump(config),
        "output-dir": str(output),
        "tracking-uri": config.tracking.uri or tracking.default_uri(Path.cwd()),
    }
    if backend == "local":
        preflight(config)
        results.claim(output, run_config["config-yaml"])
        _run_local(config, output, run_config)
    else:
        _run_flower(config, output, run_config)
    result: dict[str, Any] = json.loads((output / results.RESULT).read_text(encoding="utf-8"))
    return result


def _run_flower(config: Config, output: Path, run_config: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="fedistill-") as scratch:
        # The SuperLink takes seconds to start: let it, while the config is being checked.
        environment = {_PROGRESS: str(output / "progress.jsonl")}
        with Simulation(Path(scratch), environment) as simulation:
            preflight(config)
            results.claim(output, run_config["config-yaml"])
            with _display(output, config.partition.clients) as display, (output / _LOG).open("w", encoding="utf-8") as log:
                warning = False

                def on_line(line: str) -> None:
                    nonlocal warning
                    log.write(line + "\n")
                    log.flush()
                    # A message of several lines, a traceback say, belongs to its first line.
                    level = line.split(":")[0].strip()
                    warning = level in _SHOWN or (warning and line.startswith((" ", "\t")))
                    if warning:
                        display.log(line)

                outcome = simulation.run(
                    run_config=run_config,
                    num_clients=config.partition.clients,
                    cpus_per_client=config.federation.cpus_per_client,
                    gpus_per_client=config.federation.gpus_per_client,
                    on_line=on_line,
                )
    _raise_failure(output)
    if outcome.status != "completed" or not (output / results.RESULT).is_file():
        raise RunError(
            f"the Flower run ended as '{outcome.status}': {outcome.details or 'no details'}; "
            f"its log is in {output / _LOG}"
        )


def _run_local(config: Config, output: Path, run_config: dict[str, str]) -> None:
    local = importlib.import_module("strategies.local")
    server_app = importlib.import_module("strategies.server_app").app
    client_app = importlib.import_module("fedistill.client_app").app
    with _display(output, config.partition.clients):
        local.run(server_app, client_app, config.partition.clients, run_config)


def _raise_failure(output: Path) -> None:
    failure = results.read_failure(output)
    if failure is not None:
        kind = UserError if failure["user_error"] else RunError
        raise kind(f"{failure['message']} ({failure['error']}; the log is in {output / _LOG})")


@contextmanager
def _display(output: Path, clients: int) -> Iterator[ProgressDisplay]:
    """Show the progress that the processes of the run write to a file."""
    path = output / "progress.jsonl"
    before = os.environ.get(_PROGRESS)
    os.environ[_PROGRESS] = str(path)
    try:
        with ProgressDisplay(path, clients=clients) as display:
            yield display
    finally:
        if before is None:
            del os.environ[_PROGRESS]
        else:
            os.environ[_PROGRESS] = before
