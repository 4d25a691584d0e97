"""Run a sweep: every federation of a grid, with Flower started once for all of them.

The folder of a sweep holds `sweep.json`, which says what it consists of, and the output folder of
each federation below `runs/`. How far it is stands in these folders alone, so that a sweep that was
killed goes on where it was: what is done stays, what has failed or was cut short is done again, and
teachers, shares and students come from the artefact store.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedistill import (
    client,
    comparison,
    data,
    estimate,
    mlflow_schema,
    partition,
    planning,
    results,
    runner,
    sweep_folder,
    tracking,
)
from fedistill.config import Config
from fedistill.errors import RunError, UserError
from fedistill.estimate import Load
from fedistill.grid import Federation, Grid
from fedistill.journal import JOURNAL, without_secrets
from fedistill.locking import exclusive
from fedistill.store import Store
from fedistill.tracking import Status

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is left to do for one federation.

    Attributes:
        federation: of the grid.
        status: done, failed (before, and to be done again) or todo.
        load: what is not in the store yet, and comes there by none of the federations before;
            nothing for one that is done.
        teachers: clients whose teachers are in the store.
        shares: clients whose images are there too.
    """

    federation: Federation
    status: str
    load: Load
    teachers: int
    shares: int


def default_output(grid: Grid) -> Path:
    """Return a folder for a sweep that names none: `runs/NAME-sweep-DATE-TIME`."""
    return Path("runs") / f"{grid.base.name}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"


def run(
    grid: Grid,
    output: Path,
    backend: str,
    store: Path | None = None,
    begun: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Run what is left of a sweep.

    Args:
        grid: of the sweep.
        output: a new or empty folder, or that of the same sweep, which is continued.
        backend: "flower" or "local".
        store: the artefact store; None: the one that FEDISTILL_STORE names, else one of its own.
        begun: is told the folder once the sweep is written down there, and can be continued.

    Returns:
        The sweep's state, as `comparison.read` returns it.

    Raises:
        UserError: something the user can mend; nothing was lost.
        RunError: federations failed; the others are done.
    """
    started = time.monotonic()
    output = output.absolute()
    grid = sweep_folder.with_known_names(_with_absolute_paths(grid), output)
    _check(grid, output)
    uri = runner.surroundings(grid.base, output)["tracking-uri"]
    if grid.base.tracking.enabled:
        mlflow_schema.check_store(uri)
    with (
        exclusive(output, "the folder"),
        runner.using_store(_store(store, output), grid.base) as kept,
        _held(kept),
    ):
        plans = plan(grid, output, kept)
        finished = [it.federation.folder for it in plans if it.status == "done"]
        sweep_folder.claim(grid, output, _said(plans), finished)
        left = sweep_folder.left(output)
        if begun is not None:
            begun(output)
        if grid.base.tracking.enabled:
            _bring_together(output, uri)
        status: Status = "KILLED"
        try:
            _run_all(grid, output, backend)
            states = sweep_folder.states(output).values()
            status = "FINISHED" if {*states} == {"done"} else "FAILED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            send = grid.base.tracking.enabled
            ended: Status = "FAILED" if status == "FINISHED" else status
            for folder, reached in sweep_folder.states(output).items():
                # One with a result has ended its own, unless it was killed as it did.
                how: Status = "FINISHED" if reached == "done" else ended
                tracking.close_if_open(output / folder, how, send=send)
            tracking.close_if_open(output, status, send=send)
            if left:  # who looks again at what is done takes no time
                sweep_folder.add_seconds(output, time.monotonic() - started)
    state = comparison.read(output)
    wanted = {federation.folder for federation in grid.federations}
    failed = [it for it in state["runs"] if it["status"] != "done" and it["folder"] in wanted]
    if failed:
        reasons = "".join(f"\n  - {it['folder']}: {it['message']}" for it in failed)
        raise RunError(
            f"{len(failed)} of {len(wanted)} federations failed; the others are in "
            f"{output}, and the same command with that --output tries these again:{reasons}"
        )
    return state


def _bring_together(output: Path, uri: str) -> None:
    """Send what is done to the store that the sweep goes on in, where it is not there."""
    states = sweep_folder.states(output)
    folders = [output / folder for folder, status in states.items() if status == "done"]
    if len(folders) == len(states):  # nothing is left that would send the sweep itself
        folders.append(output)
    for folder in folders:
        stored = tracking.stored_run(folder)
        if stored is None or stored.tracking_uri != without_secrets(uri):
            try:
                tracking.deliver(folder, uri)
            except UserError as error:
                _log.warning("what is done is not in the MLflow store of this command: %s", error)
                return


def plan(grid: Grid, output: Path, store: Store) -> list[Plan]:
    """Return what is left to do, federation by federation.

    Args:
        grid: of the sweep.
        output: its folder, which need not exist.
        store: where teachers, shares and students are kept; it has a folder.
    """
    found = []
    coming: set[str] = set()
    done = sweep_folder.states(output)
    loaded: tuple[Any, data.Data] | None = None
    for federation in grid.federations:
        config, status = federation.config, done.get(federation.folder, "todo")
        if status == "done":
            coming.add(_on_all_data(config))
            nothing = Load(shards=[], images=[], real=0)
            everyone = config.partition.clients
            found.append(
                Plan(
                    federation=federation,
                    status=status,
                    load=nothing,
                    teachers=everyone,
                    shares=everyone,
                )
            )
            continue
        if loaded is None or loaded[0] != (config.data, config.seed):
            loaded = (config.data, config.seed), data.load(config.data, config.seed)
        found.append(_plan(federation, status, loaded[1], store, coming))
    return found


def _plan(
    federation: Federation, status: str, loaded: data.Data, store: Store, coming: set[str]
) -> Plan:
    """Plan one federation, and add to what is coming what it will make."""
    config, labels, spec = federation.config, loaded.train.labels, loaded.spec
    parts = partition.split(labels, spec.num_classes, config.partition, config.seed)
    histograms = dict(enumerate(parts.histograms(labels, spec.num_classes)))
    asked = planning.requests(config, planning.plans(config, spec, histograms))
    kept = [
        client.kept(
            config,
            spec,
            loaded.train.select(parts.indices[number]),
            asked[number],
            partition_id=number,
            store=store,
        )
        for number in histograms
    ]
    spared = [
        (it.teachers or it.work[0] in coming, it.share or it.work[1] in coming) for it in kept
    ]
    load = Load(
        shards=[0 if known else sum(histograms[n]) for n, (known, _) in enumerate(spared)],
        images=[0 if known else sum(asked[n]) for n, (_, known) in enumerate(spared)],
        real=len(labels),
        on_all=0 if _on_all_data(config) in coming else len(labels),
    )
    coming.update(name for it in kept for name in it.work)
    coming.add(_on_all_data(config))
    return Plan(
        federation=federation,
        status=status,
        load=load,
        teachers=sum(it.teachers for it in kept),
        shares=sum(it.share for it in kept),
    )


def _on_all_data(config: Config) -> str:
    """Name what the row `full_data` trains: the same whatever clients there are."""
    return f"full data of seed {config.seed}: {config.student.networks[0]}, {config.teacher}"


def _estimated_seconds(grid: Grid, plans: Sequence[Plan]) -> list[float]:
    rates: dict[str, estimate.Rates] = {}
    spec = data.load(grid.base.data, grid.base.seed).spec
    found = []
    for it in plans:
        config = it.federation.config
        if it.status == "done":
            found.append(0.0)
            continue
        name = it.federation.method
        if name not in rates:
            rates[name] = estimate.rates(config, spec)
        found.append(estimate.seconds(config, spec, rates[name], it.load))
    return found


def dry_run(grid: Grid, output: Path, store: Path | None) -> tuple[list[Plan], list[float]]:
    """Say what a sweep would do, and how many seconds each federation would take.

    Nothing is written, and every stage of each method is timed for a moment.

    Raises:
        UserError: what would keep it from running, but for a process that is at it now.
    """
    output = output.absolute()
    grid = sweep_folder.with_known_names(_with_absolute_paths(grid), output)
    _check(grid, output)
    if grid.base.tracking.enabled:
        mlflow_schema.check_store(runner.surroundings(grid.base, output)["tracking-uri"])
    folder = _store(store, output) or Store.from_environment().folder
    kept = Store(folder)
    kept.require_folder()
    plans = plan(grid, output, kept)
    return plans, _estimated_seconds(grid, plans)


def _check(grid: Grid, output: Path) -> None:
    sweep_folder.check(grid, output)
    runner.preflight(*[federation.config for federation in grid.federations])


def _said(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Return what `sweep.json` says of federations: which they are, and how much work is left."""
    config = plans[0].federation.config
    spec = data.load(config.data, config.seed).spec
    return [
        {**it.federation.as_dict(), "work": estimate.passes(it.federation.config, spec, it.load)}
        for it in plans
    ]


def _run_all(grid: Grid, output: Path, backend: str) -> None:
    """Start Flower, and start it again if a process of the simulation died."""
    dataset = data.load(grid.base.data, grid.base.seed).spec.name
    run_config = {**runner.surroundings(grid.base, output), "sweep": "true", "dataset": dataset}
    journal = output / JOURNAL
    while left := sweep_folder.left(output):
        before = journal.stat().st_size if journal.is_file() else 0
        # Also those of an earlier command, which this one does not name.
        runs = comparison.read(output)["runs"]
        most = max(run["clients"] for run in runs if run["folder"] in left)
        widest = replace(grid.base, partition=replace(grid.base.partition, clients=most))
        reason = ""
        try:
            outcome = runner.execute(widest, output, run_config, backend, lambda: None)
            if outcome is not None and outcome.status != "completed":
                reason = outcome.details or outcome.status
        except RunError as error:
            reason = str(error)
        if sweep_folder.left(output) != left:
            continue
        text = f"the simulation ended before it was done: {reason or 'no details'}"
        if not journal.is_file() or journal.stat().st_size == before:
            raise RunError(
                f"{text}; no federation had begun, and the same command with --output {output} "
                "goes on"
            )
        # The first of them brings the simulation down every time.
        results.write_failure(output / left[0], RunError(text))


def _store(store: Path | None, output: Path) -> Path | None:
    """Return the store that is named; without one a sweep keeps its own."""
    named = Store.from_environment().folder is not None
    return store if store is not None or named else output / sweep_folder.STORE


@contextmanager
def _held(store: Store) -> Iterator[None]:
    assert store.folder is not None
    with exclusive(store.folder, "the artefact store"):
        yield


def _with_absolute_paths(grid: Grid) -> Grid:
    return replace(
        grid,
        base=runner.with_absolute_paths(grid.base),
        federations=[_with_absolute_path(it) for it in grid.federations],
    )


def _with_absolute_path(it: Federation) -> Federation:
    config = runner.with_absolute_paths(it.config)
    name = f"data.name={json.dumps(config.data.name)}"  # other choices are of the same data
    return replace(it, config=config, overrides=(*it.overrides, name))
