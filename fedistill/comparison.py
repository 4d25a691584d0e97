"""What a sweep has found, read from its folder: one row for each set, one line for each IPC.

`sweep.json` says which federations there are; every number comes from their own `result.json`,
so that nothing is kept twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fedistill import results
from fedistill.errors import OutputError

SWEEP = "sweep.json"


class Facet(NamedTuple):
    """What lines that belong into one chart have in common."""

    distiller: str
    alpha: float | None


class Line(NamedTuple):
    """What stays the same along a line of the comparison, while the number of clients changes."""

    distiller: str
    alpha: float | None
    ipc: int

    @property
    def facet(self) -> Facet:
        """Return the line without its IPC."""
        return Facet(self.distiller, self.alpha)


@dataclass(frozen=True)
class Row:
    """One distilled set of one federation.

    Attributes:
        line: that it is a point of.
        clients: of the federation.
        seed: of the federation.
        top1: accuracy of each student of the first model, in percent.
        baselines: accuracies of the rows beside it, by name.
        teachers: mean accuracy of the clients' teachers; None: they were not tested.
        result: the federation's result.json.
        folder: of the federation.
    """

    line: Line
    clients: int
    seed: int
    top1: tuple[float, ...]
    baselines: Mapping[str, tuple[float, ...]]
    teachers: float | None
    result: Mapping[str, Any]
    folder: Path


class Point(NamedTuple):
    """Mean and standard deviation of n accuracies, in percent."""

    mean: float
    std: float
    n: int


def read(folder: Path) -> dict[str, Any]:
    """Read what a sweep consists of, and how far each of its federations is.

    Returns:
        `sweep.json` with `status` (done, failed, todo), `message` and `seconds` in every run, as
        the run's own folder tells them: no second record could disagree with it.

    Raises:
        OutputError: the folder holds no sweep.
    """
    path = folder / SWEEP
    try:
        tree = results.read_json(path)
        return {**tree, "runs": [{**run, **_state(folder / run["folder"])} for run in tree["runs"]]}
    except FileNotFoundError as error:
        raise OutputError(
            f"{folder} holds no {SWEEP}; give the output folder of `fedistill sweep`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is not the record of a sweep: {error!r}") from error


def _state(folder: Path) -> dict[str, Any]:
    if (folder / results.RESULT).is_file():
        seconds = _result(folder)["seconds"]["total"]
        return {"status": "done", "message": None, "seconds": seconds}
    failure = results.read_failure(folder)
    if failure is not None:
        return {"status": "failed", "message": failure["message"], "seconds": None}
    return {"status": "todo", "message": None, "seconds": None}


def _result(folder: Path) -> dict[str, Any]:
    path = folder / results.RESULT
    try:
        return results.read_json(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read: {error}") from error


def rows(folder: Path) -> list[Row]:
    """List the sets of all federations that are done, in the order of the sweep."""
    found = []
    for run in read(folder)["runs"]:
        if run["status"] != "done":
            continue
        own = folder / run["folder"]
        found += of_federation(own, _result(own), run["distiller"], run["alpha"])
    return found


def of_federation(
    folder: Path, result: Mapping[str, Any], distiller: str, alpha: float | None
) -> list[Row]:
    """List the sets of one federation.

    Args:
        folder: of the federation.
        result: its result.json.
        distiller: its method, as its line is named.
        alpha: of its partition, if it has one.
    """
    found = []
    for ipc, scores in result["sets"].items():
        first = next(iter(scores["students"].values()))
        found.append(
            Row(
                line=Line(distiller, alpha, int(ipc)),
                clients=result["clients"],
                seed=result["seed"],
                top1=tuple(first["top1"]),
                baselines={k: tuple(it["top1"]) for k, it in scores["baselines"].items()},
                teachers=result["teachers"]["top1_mean"],
                result=result,
                folder=folder,
            )
        )
    return found


def curves(rows: Iterable[Row], baseline: str | None = None) -> dict[Line, dict[int, Point]]:
    """Return accuracy over the number of clients, one curve for each line.

    Args:
        rows: of a sweep; the students of all seeds count alike.
        baseline: take the accuracies of this row in place of the distilled set's.
    """
    values: dict[Line, dict[int, list[float]]] = {}
    for row in rows:
        top1 = row.top1 if baseline is None else row.baselines.get(baseline, ())
        if top1:
            values.setdefault(row.line, {}).setdefault(row.clients, []).extend(top1)
    return {
        line: {clients: point(values[line][clients]) for clients in sorted(values[line])}
        for line in sorted(values, key=lambda it: (it.distiller, it.alpha or 0.0, it.ipc))
    }


def facets(lines: Iterable[Line | Facet]) -> dict[Facet, str]:
    """Name the charts that lines fall into by what tells these apart; one chart has no name."""
    every = {it if isinstance(it, Facet) else it.facet for it in lines}
    found = sorted(every, key=lambda it: (it.distiller, it.alpha or 0.0))
    methods, alphas = {facet.distiller for facet in found}, {facet.alpha for facet in found}
    return {
        facet: ", ".join(
            [facet.distiller] * (len(methods) > 1) + [skew(facet.alpha)] * (len(alphas) > 1)
        )
        for facet in found
    }


def teachers(rows: Iterable[Row]) -> dict[Facet, dict[int, float]]:
    """Return the mean accuracy of the clients' teachers over the number of clients, in percent.

    A federation counts once, however many sets it made; one without tested teachers not at all.
    """
    values: dict[Facet, dict[int, dict[Path, float]]] = {}
    for row in rows:
        if row.teachers is not None:
            by_clients = values.setdefault(row.line.facet, {}).setdefault(row.clients, {})
            by_clients[row.folder] = row.teachers
    return {
        facet: {n: point([*found[n].values()]).mean for n in sorted(found)}
        for facet, found in values.items()
    }


def point(top1: Sequence[float]) -> Point:
    """Sum accuracies up; the standard deviation is that of a sample, 0 for one value."""
    mean = sum(top1) / len(top1)
    spread = sum((value - mean) ** 2 for value in top1)
    return Point(mean, (spread / max(1, len(top1) - 1)) ** 0.5, len(top1))


def lines(sweep: Mapping[str, Any]) -> list[Line]:
    """List the lines that a sweep will have when it is done.

    Args:
        sweep: as `read` returns it.
    """
    axes = sweep["axes"]
    return [Line(*values) for values in product(axes["distiller"], axes["alpha"], axes["ipc"])]


def labels(lines: Iterable[Line]) -> dict[Line, str]:
    """Name lines by what tells them apart: `IPC 10`, `IPC 10, alpha 0.1`, `lic, IPC 10`."""
    found = list(lines)
    methods, alphas = {line.distiller for line in found}, {line.alpha for line in found}
    names = {}
    for line in found:
        parts = [line.distiller] if len(methods) > 1 else []
        parts.append(f"IPC {line.ipc}")
        if len(alphas) > 1:
            parts.append(skew(line.alpha))
        names[line] = ", ".join(parts)
    return names


def facets_are(lines: Iterable[Line]) -> str:
    """Say what the names of `facets` are: the head of their column."""
    found = {line.facet for line in lines}
    methods, splits = {facet.distiller for facet in found}, {facet.alpha for facet in found}
    return ", ".join(["method"] * (len(methods) > 1) + ["split"] * (len(splits) > 1))


def alphas(lines: Iterable[Line]) -> list[float | None]:
    """List the splits of lines from the most to the least uneven; None is iid."""
    found = {line.alpha for line in lines}
    return [*sorted(it for it in found if it is not None), *[None] * (None in found)]


def skew(alpha: float | None) -> str:
    """Name a split by its alpha."""
    return "iid" if alpha is None else f"alpha {alpha:g}"
