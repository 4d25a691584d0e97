"""The folder of a sweep: what may be put there, and how it grows.

`sweep.json` says which federations there are. A later command may add others, as long as they
belong into the same comparison; one that is there already keeps its folder, whatever axes the new
command names.
"""

import json
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedistill import comparison, config_file, locking, planning, results
from fedistill.config import Config, PartitionConfig
from fedistill.errors import ConfigError, OutputError
from fedistill.grid import Federation, Grid
from fedistill.journal import JOURNAL

STORE = "store"  # the artefact store, where no other is named

Tree = Mapping[str, Any]
_NOTHING = object()  # no value of a key, not even null

# What a chart cannot tell apart must be the same in all of its federations. Along a line these may
# change alone ...
_ALONG_A_LINE = (
    "baselines",
    "distill.ipc",
    "federation.cpus_per_client",
    "federation.deadline_s",
    "federation.gpus_per_client",
    "federation.min_clients",
    "federation.wait_s",
    "name",
    "partition.clients",
    "seed",
    "sweep",
    "tracking",
)
# ... and from line to line also what follows from the method or the split. These do not: they say
# on which data, and after what training, accuracies are compared.
_IN_EVERY_LINE = ("data", "model", "teacher", "student")


def with_known_names(grid: Grid, output: Path) -> Grid:
    """Let experiments that a sweep holds already keep their folders, and lines their methods.

    Both are named by the axes of a command, so a command with another axis would name them anew:
    one line would fall in two.

    Args:
        grid: of the command.
        output: the folder of the sweep.
    """
    held = _held(output, grid)
    same = {config_file.identity(config): run for run, config in held}
    found = []
    for it in grid.federations:
        run = same.get(config_file.identity(it.config))
        if run is not None:
            it = replace(it, folder=run["folder"])
        else:
            run = _line(it, held)
        if run is not None:
            it = replace(it, method=run["distiller"], varied=tuple(run.get("varied", ())))
        found.append(it)
    methods = list(dict.fromkeys(it.method for it in found))
    return replace(grid, federations=found, axes={**grid.axes, "distiller": methods})


def _line(it: Federation, held: Sequence[tuple[Tree, Config]]) -> Tree | None:
    """Return a run of the line that a federation belongs to: one that it fits in all its points."""
    lines: dict[Any, list[tuple[Tree, Config]]] = {}
    for run, config in held:
        lines.setdefault((run["distiller"], run["alpha"]), []).append((run, config))
    for line in lines.values():
        if all(_of_one_line(it, run, config) for run, config in line):
            return line[0][0]
    return None


def _of_one_line(it: Federation, run: Tree, config: Config) -> bool:
    """Say whether a federation differs from one that is held in what may change along a line.

    What is varied may not: its values have lines of their own, whatever it is.
    """
    varied = {*it.varied, *run.get("varied", [])}
    return it.alpha == run["alpha"] and all(
        _within(key, _ALONG_A_LINE) and key not in varied
        for key in config_file.changed(config, it.config)
    )


def check(grid: Grid, output: Path) -> None:
    """Refuse a folder that holds anything but this sweep.

    Args:
        grid: with the folders that the sweep knows.
        output: the folder of the sweep.

    Raises:
        OutputError: what it holds, and what to do; nothing was changed.
    """
    if not (output / comparison.SWEEP).is_file():
        # A sweep that was stopped before it began has left no more than these.
        results.check_free(output, leftovers=(*locking.FILES, STORE))
        return
    held = _held(output, grid)
    by_folder = {run["folder"]: config for run, config in held}
    for it in grid.federations:
        before = by_folder.get(it.folder)
        if before is not None and config_file.identity(before) != config_file.identity(it.config):
            raise _other(output, it.folder, config_file.changed(before, it.config))
        if it.folder in by_folder:  # it is the one that is there
            continue
        _check_named(it, held, output)
        remade: dict[str, Config | None] = {}  # by the choice: many runs have one
        for run, config in held:
            _check_comparable(it, run, config, output, remade)
    _check_places(grid, held, output)


def _check_named(it: Federation, held: Sequence[tuple[Tree, Config]], output: Path) -> None:
    """Refuse a value of what was varied before that no line has and this one does not name."""
    varied = {
        key for run, _ in held for key in run.get("varied", []) if _within(key, _IN_EVERY_LINE)
    }
    for key in sorted(varied - {*it.choice}):
        if not any(_value(config, key) == _value(it.config, key) for _, config in held):
            raise _other(output, held[0][0]["folder"], [key])


def _check_comparable(
    it: Federation, run: Tree, config: Config, output: Path, remade: dict[str, Config | None]
) -> None:
    if (run["distiller"], run["alpha"]) == (it.method, it.alpha):
        differs = config_file.changed(config, it.config)
        found = [key for key in differs if not _within(key, _ALONG_A_LINE)]
        if not _sets_alike(config, it.config):
            found.append("distill.ipc")
    else:
        found = _apart(config, it.config)
        if found and (named := _named(it, run, config)):
            # What is varied differs, and what follows from it, such as the students' epochs from
            # their protocol: with the values that are held nothing may.
            mark = json.dumps(named, sort_keys=True)
            if mark not in remade:
                remade[mark] = _remade(it, named)
            if (other := remade[mark]) is not None:
                found = _apart(config, other)
        if not _told_apart(config.partition, it.config.partition):
            found.append("partition.name")
    if found:
        raise _other(output, run["folder"], found)


def _apart(one: Config, other: Config) -> list[str]:
    """List the differences that not even two lines may have."""
    return [key for key in config_file.changed(one, other) if _within(key, _IN_EVERY_LINE)]


def _named(it: Federation, run: Tree, config: Config) -> dict[str, Any]:
    """Return a choice for a new federation: a held run's, in what no two lines may differ."""
    varied = {*it.choice, *run.get("varied", [])}
    held = {key: _value(config, key) for key in sorted(varied) if _within(key, _IN_EVERY_LINE)}
    return {**it.choice, **{key: value for key, value in held.items() if value is not _NOTHING}}


def _value(config: Config, key: str) -> Any:
    try:
        return config_file.value(config, key)
    except KeyError:  # of another kind of section; older versions wrote down what follows, too
        return _NOTHING


def _remade(it: Federation, choice: Mapping[str, Any]) -> Config | None:
    """Return the config of a federation with another choice; None: they do not go together."""
    try:
        return it.with_choice(choice)
    except ConfigError:
        return None


def _sets_alike(one: Config, other: Config) -> bool:
    """Say whether the sets of an IPC in common are sets of one kind, whatever the other sizes.

    Sets that are trained together guide each other, and small ones are cut out of the largest,
    whose images are not those of a small set alone.
    """
    sizes, others = one.distill.ipc, other.distill.ipc
    if sizes == others or planning.trains_sizes_together(one):
        return sizes == others
    own_images = planning.distiller_of(one).optimises_jointly
    return own_images or not {*sizes} & {*others} or max(sizes) == max(others)


def _check_places(grid: Grid, held: Sequence[tuple[Tree, Config]], output: Path) -> None:
    known = {_place(run): (run["folder"], config) for run, config in held}
    for it in grid.federations:
        folder, config = known.setdefault(_place(it.as_dict()), (it.folder, it.config))
        if folder != it.folder:
            raise _twice(output, folder, config_file.changed(config, it.config))


def _place(run: Tree) -> tuple[Any, ...]:
    """Return what a table knows a federation by: a place for one alone."""
    return tuple(run[key] for key in ("distiller", "alpha", "clients", "seed"))


def _told_apart(one: PartitionConfig, other: PartitionConfig) -> bool:
    """Say whether a line of each can be named by its alpha; without one it is called iid."""
    if one.name == other.name:
        return True
    iid, skewed = (one, other) if one.name == "iid" else (other, one)
    return iid.name == "iid" and skewed.alpha is not None


def _other(output: Path, folder: str, differs: Sequence[str]) -> OutputError:
    return OutputError(
        f"{output} holds a sweep with another config: {folder} differs in "
        f"{', '.join(differs[:5])}; nothing was changed: choose another --output (with "
        f"--store {output / STORE} what both have in common is not made "
        "again), or take the options of that sweep"
    )


def _twice(output: Path, folder: str, differs: Sequence[str]) -> OutputError:
    return OutputError(
        f"{output} has one place for this federation, which is that of {folder}, with another "
        f"{', '.join(differs[:5])}: a table would count both as two seeds of one; nothing was "
        "changed: take the options of that sweep, or choose another --output"
    )


def claim(grid: Grid, output: Path, own: Sequence[Tree], done: Sequence[str]) -> None:
    """Write what the sweep consists of, and the config of each federation that is left.

    Args:
        grid: of the command.
        output: the folder of the sweep.
        own: what `sweep.json` is to say of each federation of the grid.
        done: folders of those that are not run again.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = output / comparison.SWEEP
    before = results.read_json(path) if path.is_file() else {}
    new = {run["folder"] for run in own}
    older = [run for run in before.get("runs", []) if run["folder"] not in new]
    axes = {
        name: list(dict.fromkeys([*before.get("axes", {}).get(name, []), *values]))
        for name, values in grid.axes.items()
    }
    command = ["fedistill", *sys.argv[1:]]
    earlier = [it for it in before.get("commands", []) if it != command]
    results.write_json(
        path,
        {
            "sweep_id": before.get("sweep_id", uuid.uuid4().hex[:12]),
            "name": grid.base.name,
            "command": command,
            "commands": [*earlier, command],
            "axes": {name: sorted(values, key=_order) for name, values in axes.items()},
            "created": before.get("created", time.strftime("%Y-%m-%d %H:%M:%S")),
            "seconds": before.get("seconds", 0.0),
            "runs": [*older, *own],
        },
    )
    results.write_whole(output / results.CONFIG, config_file.dump(grid.base).encode())
    (output / "progress.jsonl").unlink(missing_ok=True)
    for it in grid.federations:
        if it.folder in done:
            continue
        folder = output / it.folder
        (folder / results.FAILURE).unlink(missing_ok=True)
        shutil.rmtree(folder / "sets", ignore_errors=True)  # half of them may be there
        results.write_whole(folder / results.CONFIG, config_file.dump(it.config).encode())


def states(output: Path) -> dict[str, str]:
    """Return done, failed or todo for each federation that the sweep holds, by its folder."""
    if not (output / comparison.SWEEP).is_file():
        return {}
    return {run["folder"]: run["status"] for run in comparison.read(output)["runs"]}


def left(output: Path) -> list[str]:
    """Return the folders of the federations that are still to be run."""
    return [folder for folder, status in states(output).items() if status == "todo"]


def journals(folder: Path) -> list[Path]:
    """Return the folders of a sweep and of its federations that have a journal; a run's own."""
    runs = [folder / run for run in states(folder)]
    return [folder, *(run for run in runs if (run / JOURNAL).is_file())]


def add_seconds(output: Path, seconds: float) -> None:
    """Add the time of one command to that of the sweep."""
    path = output / comparison.SWEEP
    tree = results.read_json(path)
    results.write_json(path, {**tree, "seconds": round(tree["seconds"] + seconds, 1)})


def _held(output: Path, grid: Grid) -> list[tuple[Tree, Config]]:
    """Return what `sweep.json` says of each federation that has a config, and the config.

    Data that were moved have the name that the command gives them now.
    """
    if not (output / comparison.SWEEP).is_file():
        return []
    found = []
    for run in comparison.read(output)["runs"]:
        path = output / run["folder"] / results.CONFIG
        if path.is_file():
            config = config_file.load(path)
            if _moved(config.data.name, grid.base.data.name):
                config = replace(config, data=replace(config.data, name=grid.base.data.name))
            found.append((run, config))
    return found


def _moved(before: str, now: str) -> bool:
    """Say whether a folder of data is gone, and there is another of its name."""
    old, new = Path(before), Path(now)
    return old.is_absolute() and new.is_absolute() and old.name == new.name and not old.exists()


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _order(value: Any) -> tuple[bool, Any]:
    """Sort the values of an axis: iid before every alpha, names by the alphabet."""
    return (value is not None, value if value is not None else 0)
