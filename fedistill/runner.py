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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from fedistill import (
    config_file,
    data,
    deployment,
    mlflow_schema,
    partition,
    planning,
    progress,
    results,
    sources,
    tracking,
)
from fedistill.config import Config
from fedistill.display import ProgressDisplay
from fedistill.errors import ConfigError, DataError, RunError, UserError
from fedistill.journal import absolute_uri
from fedistill.processes import MARK as SIMULATION
from fedistill.simulation import Outcome, Simulation, federation_config
from fedistill.store import VARIABLE as STORE_VARIABLE
from fedistill.store import Store

_PROGRESS = "FEDISTILL_PROGRESS"
_LOG = "log.txt"
_EARLIER_LOG = "log-before.txt"  # of the command that a repeated one continues
PROGRESS = "progress.jsonl"
_SHOWN = ("WARNING", "ERROR", "CRITICAL")
_LEVEL = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s*(?P<text>.*)")
_NOISE = ("Since flwr",)  # what Flower says about its own defaults


def default_output(config: Config) -> Path:
    """Return a folder for a run that names none: `runs/NAME-DATE-TIME`."""
    return Path("runs") / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def preflight(*configs: Config) -> None:
    """Find what would fail later: data, split, classes, models. Decodes the data set once.

    Args:
        *configs: of the run, or of all federations of a sweep.

    Raises:
        UserError: what is wrong, and what to do.
    """
    known: tuple[Any, data.Data] | None = None
    for config in configs:
        if config.federation.gpus_per_client > 0 and not torch.cuda.is_available():
            raise ConfigError(
                f"federation.gpus_per_client is {config.federation.gpus_per_client:g} and torch "
                "sees no GPU here; set it to 0, or mend the driver"
            )
        if known is None or known[0] != (config.data, config.seed):
            known = (config.data, config.seed), data.load(config.data, config.seed)
        labels, spec = known[1].train.labels, known[1].spec
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
    if config.sweep is not None:
        raise ConfigError(
            "the config has a section `sweep`, and `fedistill run` makes one experiment; use "
            "`fedistill sweep`, or --set sweep=null"
        )
    config = with_absolute_paths(config)
    run_config = {
        "config-yaml": config_file.dump(config),
        "started-at": str(started_at),
        **surroundings(config, output),
    }

    def prepare() -> None:
        preflight(config)
        if config.tracking.enabled:
            mlflow_schema.check_store(run_config["tracking-uri"])
        results.claim(output, run_config["config-yaml"])

    try:
        with using_store(store, config):
            outcome = execute(config, output, run_config, backend, prepare)
            raise_failure(output)
            if outcome is not None and outcome.status != "completed":
                raise RunError(_end(outcome, output))
            if not (output / results.RESULT).is_file():
                raise RunError(f"the run left no {results.RESULT}; its log is in {output / _LOG}")
    except BaseException as error:
        status: Literal["KILLED", "FAILED"] = "FAILED" if isinstance(error, Exception) else "KILLED"
        tracking.close_if_open(output, status, send=config.tracking.enabled)
        raise
    result: dict[str, Any] = json.loads((output / results.RESULT).read_text(encoding="utf-8"))
    return result


def deploy(config: Config, output: Path, superlink: str) -> dict[str, Any]:
    """Run one experiment on the devices of a deployment and return its result.json.

    Args:
        config: of the experiment.
        output: a new or empty folder, or that of a run which was cut: it goes on.
        superlink: its name in the config.toml of FLWR_HOME.

    Raises:
        UserError: something the user can mend; nothing was overwritten.
        RunError: the run failed, or its results cannot be reached from here.
    """
    output = output.absolute()
    with ExitStack() as shown:
        log: list[_Log] = []

        def claimed() -> None:
            for name in (results.FAILURE, PROGRESS):
                (output / name).unlink(missing_ok=True)
            if (output / _LOG).is_file():  # Flower tells the whole log of a run again
                (output / _LOG).replace(output / _EARLIER_LOG)
            display = shown.enter_context(_display(output, clients=0))
            log.append(shown.enter_context(_Log(output, display)))

        def on_line(line: str) -> None:
            event, failure = progress.from_log(line), results.failure_from_log(line)
            if event is not None:
                with (output / PROGRESS).open("ab") as file:
                    file.write(event)
            elif failure is not None:
                results.write_json(output / results.FAILURE, failure)
            else:
                log[0].line(line)

        outcome = deployment.run(config, output, superlink, on_line, claimed)
    raise_failure(output)
    if outcome.status != "completed":
        raise RunError(_end(outcome, output))
    return results.read_json(output / results.RESULT)


def surroundings(config: Config, output: Path) -> dict[str, str]:
    """Return what the ServerApp is told beside the experiment itself."""
    # What is continued goes on in the store that it began in, wherever the command is given.
    begun_in = tracking.named_store(output) or tracking.default_uri(Path.cwd())
    return {
        "output-dir": str(output),
        # Of this process: the ServerApp runs a copy of the code, in another folder.
        "source-json": json.dumps(tracking.source_tags()),
        "tracking-uri": absolute_uri(config.tracking.uri) if config.tracking.uri else begun_in,
    }


@contextmanager
def using_store(store: Path | None, config: Config) -> Iterator[Store]:
    """Let all processes of a run find the artefact store.

    Args:
        store: its folder; None: the one that FEDISTILL_STORE names, if any.
        config: of the experiment.
    """
    kept = (Store(store) if store else Store.from_environment()).opened()
    with _for_teachers_at_home(config, kept) as folder, _variable(STORE_VARIABLE, folder):
        yield kept


def execute(
    config: Config,
    output: Path,
    run_config: Mapping[str, str],
    backend: str,
    prepare: Callable[[], None],
) -> Outcome | None:
    """Start both apps once, and wait for their end.

    Args:
        config: says how many clients there are, and what each may use.
        output: for the log and the progress.
        run_config: for the ServerApp.
        backend: "flower" or "local".
        prepare: checks the input and claims the output folder, before anything is written there.

    Returns:
        How Flower says the run ended; None for the local backend, which raises.
    """
    if backend == "local":
        prepare()
        _run_local(config, output, run_config)
        return None
    return _run_flower(config, output, run_config, prepare)


def _run_flower(
    config: Config, output: Path, run_config: Mapping[str, str], prepare: Callable[[], None]
) -> Outcome:
    resources = (
        config.partition.clients,
        config.federation.cpus_per_client,
        config.federation.gpus_per_client,
    )
    federation_config(*resources)  # refuses what this machine cannot give, before anything starts
    with tempfile.TemporaryDirectory(prefix="fedistill-") as scratch:
        # The SuperLink takes seconds to start: let it, while the config is being checked.
        environment = {_PROGRESS: str(output / PROGRESS)}
        with Simulation(Path(scratch), environment) as simulation:
            prepare()
            with (
                _display(output, config.partition.clients) as display,
                _Log(output, display) as log,
            ):
                return simulation.run(
                    run_config=run_config,
                    num_clients=config.partition.clients,
                    cpus_per_client=config.federation.cpus_per_client,
                    gpus_per_client=config.federation.gpus_per_client,
                    on_line=log.line,
                )


def _end(outcome: Outcome, output: Path) -> str:
    return (
        f"the Flower run ended as '{outcome.status}': {outcome.details or 'no details'}; "
        f"its log is in {output / _LOG}"
    )


def with_absolute_paths(config: Config) -> Config:
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
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
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


def _run_local(config: Config, output: Path, run_config: Mapping[str, str]) -> None:
    local = importlib.import_module("strategies.local")
    server_app = importlib.import_module("strategies.server_app").app
    client_app = importlib.import_module("fedistill.client_app").app
    # Its clients are those of a simulation: they may open the config's data (`device.py`).
    with _variable(SIMULATION, output), _display(output, config.partition.clients):
        local.run(server_app, client_app, config.partition.clients, run_config)


def raise_failure(output: Path) -> None:
    """Raise again what ended a run in another process."""
    failure = results.read_failure(output)
    if failure is not None:
        kind = UserError if failure["user_error"] else RunError
        raise kind(f"{failure['message']} ({failure['error']}; the log is in {output / _LOG})")


@contextmanager
def _display(output: Path, clients: int) -> Iterator[ProgressDisplay]:
    """Show the progress that the processes of the run write to a file."""
    path = output / PROGRESS
    with _variable(_PROGRESS, path), ProgressDisplay(path, clients=clients) as display:
        yield display


@contextmanager
def _for_teachers_at_home(config: Config, kept: Store) -> Iterator[Path | None]:
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
