"""Run an experiment on real devices, behind a SuperLink that somebody else has started.

The operator's machine submits the app and follows its log. The ServerApp writes to a folder on its
own machine, `$FEDISTILL_RUNS/NAME`, where NAME is made up here: a path never travels. Results come
back through that folder where both see it, else through MLflow.

The same command goes on where a run was cut: it follows one that still runs, and submits one that
has died again under the same name, whose ServerApp then finds what the devices have answered. One
that has ended and is not in MLflow is submitted again, too: its ServerApp sends it once more.
"""

import json
import os
import re
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from uuid import uuid4

import tomli_w

from fedistill import config_file, results, tracking
from fedistill.config import Config
from fedistill.config_students import NEED_TRAINING_IMAGES, TESTED_ON_SERVER
from fedistill.errors import ConfigError, OutputError, RunError, known_names
from fedistill.flower_commands import FlowerCommands
from fedistill.flower_output import Outcome
from fedistill.journal import without_secrets
from fedistill.planning import distiller_of
from fedistill.simulation import stage_app

RUNS = "FEDISTILL_RUNS"
REPLIES = "replies"  # what devices have answered, while a run goes on
_NOTE = "deployment.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LIVES = 3  # of a ServerApp in one call: what kills it may be no accident
_SUPERLINK_AWAY_S = 300.0
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def runs_folder() -> Path:
    """Return the folder of all runs of a ServerApp: FEDISTILL_RUNS, or ~/.fedistill/runs."""
    named = os.environ.get(RUNS)
    return Path(named).absolute() if named else Path.home() / ".fedistill" / "runs"


def folder_of(name: str) -> Path:
    """Return a run's folder on the server.

    Raises:
        ConfigError: the name is no plain name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the run is called {name[:120]!r}; accepted: letters, digits, '.', '_' and '-'"
        )
    return runs_folder() / name


class Place(Enum):
    """What a run's folder on the server holds."""

    NEW = "nothing"
    CUT = "a run that was cut"
    FAILED = "a run that has ended in an error of its clients or its config"
    DONE = "the run's result"


def open_on_server(folder: Path, config_yaml: str) -> Place:
    """Make a folder on the server the run's own, or find out how far the same run has come in it.

    Raises:
        OutputError: it holds another run.
    """
    path = folder / results.CONFIG
    if not path.exists():
        results.write_whole(path, config_yaml.encode())
        return Place.NEW
    if path.read_text(encoding="utf-8") != config_yaml:
        raise OutputError(
            f"the folder {folder} on the server holds another run; choose another --output"
        )
    if (folder / results.RESULT).is_file():
        return Place.DONE
    failed = (folder / results.FAILURE).is_file()
    (folder / results.FAILURE).unlink(missing_ok=True)
    return Place.FAILED if failed else Place.CUT


def check(config: Config) -> None:
    """Refuse what only a simulation can do, and what all devices would refuse.

    Raises:
        ConfigError: what it is, and what to do.
    """
    if config.sweep is not None:
        raise ConfigError(
            "the config has a section `sweep`, and a deployment runs one experiment; use --set "
            "sweep=null"
        )
    uri = config.tracking.uri or ""
    if without_secrets(uri) != uri:
        raise ConfigError(
            "tracking.uri holds a user name, a password or a token, and the config travels to "
            "every device; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for the "
            "ServerApp instead"
        )
    wanted = [name for name in config.baselines if name in NEED_TRAINING_IMAGES]
    if wanted or config.student.ranking:
        what = f"baselines holds {', '.join(wanted)}" if wanted else "student.ranking is true"
        raise ConfigError(
            f"{what}, which takes real images of the clients to the server; on a deployment they "
            f"stay where they are; accepted: hard_label, {', '.join(TESTED_ON_SERVER)}"
        )
    if distiller_of(config).uses_real_images and not config.privacy.allow_real_images:
        raise ConfigError(
            f"distill.name {config.distill.name}, with its options, makes images that show real "
            "ones, and privacy.allow_real_images is false: every device would refuse; accepted: a "
            "method that starts from noise (sre2l), or privacy: {allow_real_images: true}, which "
            "each device may still forbid"
        )


def check_superlink(name: str) -> None:
    """Refuse a SuperLink that Flower's config does not name.

    Raises:
        ConfigError: which ones it names, and how to add one.
    """
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    path = home / "config.toml"
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    entries = tree.get("superlink", {})
    known = [
        key for key, entry in entries.items() if isinstance(entry, dict) and "address" in entry
    ]
    if name not in known:
        raise ConfigError(
            f"{path} has no SuperLink called {name!r} with an address; "
            f"{known_names(name, known) if known else 'it names none'}; add\n"
            f'[superlink.{name}]\naddress = "HOST:PORT"\nroot-certificates = "/PATH/TO/ca.crt"'
        )


def run(
    config: Config,
    output: Path,
    superlink: str,
    on_line: Callable[[str], None],
    claimed: Callable[[], None] = lambda: None,
) -> Outcome:
    """Drive a run on a deployment to its end, and bring its results here.

    Args:
        config: of the experiment.
        output: a new or empty folder, or that of a run which was cut.
        superlink: its name in FLWR_HOME's config.toml.
        on_line: gets the lines of the ServerApp's log, and its progress.
        claimed: called when the folder is ours.

    Returns:
        How Flower says the run ended.

    Raises:
        UserError: something the user can mend; nothing was overwritten.
        RunError: the results cannot be reached from here.
    """
    check(config)
    check_superlink(superlink)
    note = _claim(output, config, superlink)
    claimed()
    again = f"repeat this command with --output {shlex.quote(str(output))}"
    with tempfile.TemporaryDirectory(prefix="fedistill-") as scratch:
        work = Path(scratch)
        commands = FlowerCommands(
            superlink, work, os.environ | _QUIET, patience_s=_SUPERLINK_AWAY_S, again=again
        )
        for _ in range(_LIVES):
            outcome = _drive(commands, work, config, output, note, on_line)
            if outcome.status != "failed" or (output / results.FAILURE).is_file():
                break
            # A ServerApp that fails says why; one that was killed does not.
            on_line(f"WARNING :   the ServerApp has died ({outcome.details}); it is started again")
            note = results.read_json(output / _NOTE)
        if outcome.status != "completed":
            return outcome
        missing = fetch(config, output, note["name"])
        if missing and _mlflow(config):
            on_line(f"WARNING :   {missing}; the ServerApp is asked to send the results again")
            _submit(commands, work, config, output, note, on_line)
            missing = fetch(config, output, note["name"])
    if missing:
        raise RunError(
            f"the run has ended well, and its results are in $FEDISTILL_RUNS/{note['name']} on the "
            f"machine of the ServerApp; they were not brought here: {missing}; copy the folder, or "
            f"{again} when MLflow can be reached"
        )
    return outcome


def _drive(
    commands: FlowerCommands,
    work: Path,
    config: Config,
    output: Path,
    note: dict[str, str],
    on_line: Callable[[str], None],
) -> Outcome:
    """Follow the run that goes on already, or submit it."""
    run_id = note.get("run_id", "")
    state, _, status = commands.status(run_id).partition(":") if run_id else ("", "", "")
    if state and (state != "finished" or status == "completed"):
        return commands.follow(run_id, on_line)
    return _submit(commands, work, config, output, note, on_line)


def _submit(
    commands: FlowerCommands,
    work: Path,
    config: Config,
    output: Path,
    note: dict[str, str],
    on_line: Callable[[str], None],
) -> Outcome:
    """Start a ServerApp; one that finds the run's result only sends it to MLflow."""
    run_config = {
        "config-yaml": config_file.dump(config),
        "deployment": note["name"],
        "tracking-uri": config.tracking.uri or "",
        "source-json": json.dumps({**tracking.source_tags(), "deployment": note["name"]}),
    }
    path = work / "run-config.toml"
    path.write_text(tomli_w.dumps(run_config), encoding="utf-8")

    def remember(run_id: str) -> None:
        results.write_json(output / _NOTE, {**note, "run_id": run_id})

    return commands.submit(stage_app(work), ["--run-config", str(path)], on_line, remember)


def _claim(output: Path, config: Config, superlink: str) -> dict[str, str]:
    """Make the output folder ours, or continue a run in it."""
    text = config_file.dump(config)
    path = output / _NOTE
    if not path.is_file():
        results.claim(output, text)
        note = {"name": f"{_plain(output.name)}-{uuid4().hex[:8]}", "superlink": superlink}
        results.write_json(path, note)
        return note
    if (output / results.RESULT).is_file():
        raise OutputError(
            f"{output} holds a run that has its results; choose another --output, or remove the "
            "folder"
        )
    known: dict[str, str] = results.read_json(path)
    if (output / results.CONFIG).read_text(encoding="utf-8") != text:
        raise OutputError(
            f"{output} holds a run of another config, which has not ended; repeat it with its own "
            "config to continue it, or choose another --output"
        )
    if known["superlink"] != superlink:
        raise OutputError(
            f"{output} holds a run on the SuperLink {known['superlink']!r}; name that one to "
            "continue it, or choose another --output"
        )
    return known


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "run"


def fetch(config: Config, output: Path, name: str) -> str:
    """Bring the results of a run that has ended well.

    Returns:
        Why neither its folder nor its MLflow run can be reached from here; nothing: they are here.
    """
    here = folder_of(name)
    if (here / results.RESULT).is_file():
        # The result last: a folder that has it is complete.
        others = shutil.ignore_patterns(REPLIES, results.RESULT, ".*")
        shutil.copytree(here, output, dirs_exist_ok=True, ignore=others)
        shutil.copyfile(here / results.RESULT, output / results.RESULT)
        return ""
    uri = _mlflow(config)
    why = "no MLflow server is named: set tracking.uri, or MLFLOW_TRACKING_URI"
    if uri:
        place = f"MLflow at {without_secrets(uri)}"
        try:
            stored = tracking.fetch(uri, {"deployment": name}, output, last=results.RESULT)
            why = f"{place} {'knows no such run' if stored is None else 'has no result of it'}"
        except Exception as error:  # whatever MLflow raises
            stored, why = None, f"{place} does not give them ({error})"
        path = output / results.RESULT
        if stored is not None and path.is_file():
            results.write_json(path, {**results.read_json(path), "mlflow": asdict(stored)})
            return ""
    return f"{here} is not that folder, and {why}"


def _mlflow(config: Config) -> str | None:
    """Return where MLflow is from here, if the run is tracked and we know."""
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return uri if config.tracking.enabled else None
