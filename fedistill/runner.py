"""Run an experiment: check it before anything starts, run it on a backend, read what came of it.

Both backends run the same ClientApp and ServerApp: `flower` in a Flower simulation, `local` in
this process. The apps are found by their path, as Flower does; nothing here imports them.
"""

import importlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from fedistill import config_file, data, partition, planning, results, sources, tracking
from fedistill.config import Config
from fedistill.display import ProgressDisplay
from fedistill.errors import ConfigError, DataError, RunError, UserError
from fedistill.journal import absolute_uri
from fedistill.simulation import Simulation, federation_config
from fedistill.store import VARIABLE as STORE_VARIABLE
from fedistill.store import Store

_PROGRESS = "FEDISTILL_PROGRESS"
_LOG = "log.txt"
_SHOWN = ("WARNING", "ERROR", "CRITICAL")
_LEVEL = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s*(?P<text>.*)")
_NOISE = ("Since flwr",)  # what Flower says about its own defaults


def default_output(config: Config) -> Path:
    """Return a folder for a run that names none: `runs/NAME-DATE-TIME`."""
    return Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def preflight(config: Config) -> None:
    """Find what would fail later: data, split, classes, models. Decodes the data set once.

    Raises:
        UserError: what is wrong, and what to do.
    """
    if config.federation.gpus_per_client > 0 and not torch.cuda.is_available():
        raise ConfigError(
            f"federation.gpus_per_client is {config.federation.gpus_per_client:g} and torch sees "
            "no GPU here; set it to 0, or mend the driver"
        )
    loaded = data.load(config.data, config.seed)
    labels, spec = loaded.train.labels, loaded.spec
    parts = partition.split(labels, spec.num_classes, config.partition, config.seed)
    planning.check(config, spec)
    planning.plans(config, spec, dict(enumerate(parts.histograms(labels, spec.num_classes))))


def run(config: Config, output: Path, backend: str, store: Path | None = None) -> dict[str, Any]:
    """Run one experiment and return its result.json.

    Args:
        config: of the experiment.
        output: a new or empty folder.
        backend: "flower" or "local".
        store: the artefact store; None: the one that FEDISTILL_STORE names, if any.

    Raises:
        UserError: something the user can mend; nothing was overwritten.
        RunError: the run failed.
    """
    started_at = time.time()
    output = output.absolute()
    results.check_free(output)
    kept = (Store(store) if store else Store.from_environment()).opened()
    config = _with_absolute_paths(config)
    run_config = {
        "config-yaml": config_file.dump(config),
        "output-dir": str(output),
        "started-at": str(started_at),
        # Of this process: the ServerApp runs a copy of the code, in another folder.
        "source-json": json.dumps(tracking.source_tags()),
        "tracking-uri": absolute_uri(config.tracking.uri)
        if config.tracking.uri
        else tracking.default_uri(Path.cwd()),
    }
    try:
        with _store(config, kept) as folder, _variable(STORE_VARIABLE, folder):
            if backend == "local":
                preflight(config)
                results.claim(output, run_config["config-yaml"])
                _run_local(config, output, run_config)
            else:
                _run_flower(config, output, run_config)
    except BaseException as error:
        status: Literal["KILLED", "FAILED"] = "FAILED" if isinstance(error, Exception) else "KILLED"
        tracking.close_if_open(output, status, send=config.tracking.enabled)
        raise
    result: dict[str, Any] = json.loads((output / results.RESULT).read_text(encoding="utf-8"))
    return result


def _run_flower(config: Config, output: Path, run_config: dict[str, str]) -> None:
    resources = (
        config.partition.clients,
        config.federation.cpus_per_client,
        config.federation.gpus_per_client,
    )
    federation_config(*resources)  # refuses what this machine cannot give, before anything starts
    with tempfile.TemporaryDirectory(prefix="fedistill-") as scratch:
        # The SuperLink takes seconds to start: let it, while the config is being checked.
        environment = {_PROGRESS: str(output / "progress.jsonl")}
        with Simulation(Path(scratch), environment) as simulation:
            preflight(config)
            results.claim(output, run_config["config-yaml"])
            with (
                _display(output, config.partition.clients) as display,
                _Log(output, display) as log,
            ):
                outcome = simulation.run(
                    run_config=run_config,
                    num_clients=config.partition.clients,
                    cpus_per_client=config.federation.cpus_per_client,
                    gpus_per_client=config.federation.gpus_per_client,
                    on_line=log.line,
                )
    _raise_failure(output)
    if outcome.status != "completed" or not (output / results.RESULT).is_file():
        raise RunError(
            f"the Flower run ended as '{outcome.status}': {outcome.details or 'no details'}; "
            f"its log is in {output / _LOG}"
        )


def _with_absolute_paths(config: Config) -> Config:
    """Make paths of data folders absolute: the processes of a simulation live in another folder."""
    config = replace(config, data=replace(config.data, name=_absolute(config.data.name)))
    if config.cotrain is None or config.cotrain.options.get("public") is None:
        return config
    try:
        public = _absolute(config.cotrain.options["public"])
    except DataError:
        return config  # the check of the config says so, by the right key
    options = {**config.cotrain.options, "public": public}
    return replace(config, cotrain=replace(config.cotrain, options=options))


def _absolute(name: str) -> str:
    folder = sources.local_folder(name)
    return name if folder is None else str(folder.resolve())


class _Log:
    """Keeps every line of a run's log in a file, and shows warnings and errors."""

    def __init__(self, output: Path, display: ProgressDisplay) -> None:
        self._path = output / _LOG
        self._display = display
        self._shown = False

    def __enter__(self) -> "_Log":
        self._file = self._path.open("w", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def line(self, line: str) -> None:
        """Take one line of the log."""
        self._file.write(line + "\n")
        match = _LEVEL.match(line)
        if match:
            self._shown = match["level"] in _SHOWN and not match["text"].startswith(_NOISE)
        elif line and not line.startswith((" ", "\t")):  # tracebacks hold empty lines
            self._shown = False
        # An indented line belongs to the message above it: a client's traceback, say.
        if self._shown:
            self._display.log(line)


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
    with _variable(_PROGRESS, path), ProgressDisplay(path, clients=clients) as display:
        yield display


@contextmanager
def _store(config: Config, kept: Store) -> Iterator[Path | None]:
    """Give teachers that stay at home a store for the length of the run, if there is none."""
    if kept.folder is not None or config.relabel.at == "server":
        yield kept.folder
        return
    with tempfile.TemporaryDirectory(prefix="fedistill-store-") as folder:
        yield Path(folder)


@contextmanager
def _variable(name: str, path: Path | None) -> Iterator[None]:
    """Set an environment variable for a while, here and in processes that start; None: unset."""
    before = os.environ.pop(name, None)
    if path is not None:
        os.environ[name] = str(path)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
