"""The page of a sweep: accuracy over the number of clients, and what stands beside it.

Federations that failed, or are still to come, are listed; the rest of the page is about those
that are done.
"""

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedistill import __version__, comparison, comparison_files, results
from fedistill.comparison import Facet, Row
from fedistill.journal import without_secrets
from fedistill.report.cautions import alone, warnings
from fedistill.report.curves import matching
from fedistill.report.one_shot import beside_one_shot
from fedistill.report.page import (
    Block,
    Facts,
    Links,
    Page,
    Pictures,
    Section,
    Table,
    duration,
)
from fedistill.report.paper import beside_paper
from fedistill.report.recorded import Run
from fedistill.report.run import again, facts, link
from fedistill.report.sweep_accuracy import accuracy, other_networks
from fedistill.report.sweep_costs import baselines, costs
from fedistill.report.sweep_pictures import features, partitions, sheets

_FEATURES = (
    "Real images (dots) and synthetic ones (stars), seen by a student: t-SNE of its features"
)


def build(folder: Path, output: Path) -> Page:
    """Put the page of a sweep together.

    Args:
        folder: of the sweep.
        output: where the page will be; its links start there.

    Raises:
        OutputError: a file of the sweep is missing or damaged.
    """
    state, rows = comparison.read(folder), comparison.rows(folder)
    done = len({row.folder for row in rows})
    sections = [
        *(_results(state, rows) if rows else []),
        Section("Failed or missing", _missing(state)),
        *(_setting(folder, state, rows) if rows else []),
        Section("Files", [Links(files)] if (files := _links(folder, state, output)) else []),
        Section("Do it again", _again(folder, state, rows)),
    ]
    return Page(
        title=f"{state['name']}: a sweep",
        subtitle=f"{done} of {len(state['runs'])} federations done, {state['created']}",
        sections=sections,
        version=__version__,
    )


def _results(state: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    return [
        *accuracy(rows, _warnings(state, rows)),
        Section("Beside the paper's table", beside_paper(rows)),
        Section("Beside one-shot methods", beside_one_shot(rows)),
        Section("Beside the distilled sets", baselines(rows)),
        Section("Other networks", other_networks(rows)),
        Section("How closely the sets are matched", matching(rows)),
        Section("Costs", costs(rows)),
    ]


def _setting(folder: Path, state: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    return [
        Section("Synthetic images", [Pictures(sheets(rows))]),
        Section("Features", [Pictures(features(rows), _FEATURES)]),
        Section("Who holds what", [Pictures(partitions(rows))]),
        Section("What was run", [Facts(_facts(state, rows))]),
    ]


def _warnings(state: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """List what is amiss with the sweep, and once what is amiss with its federations."""
    folders = dict.fromkeys(row.folder for row in rows)
    missing = len(state["runs"]) - len(folders)
    counts = Counter(text for folder in folders for text in warnings(Run.read(folder)))
    found = [
        text if count == len(folders) else f"{text} ({count} of {len(folders)} federations)"
        for text, count in counts.items()
    ]
    curves = comparison.curves(rows).values()
    found += alone(point.n for curve in curves for point in curve.values())
    found += _of_several_versions(folders)
    if missing:
        found.append(f"{missing} of {len(state['runs'])} federations are not done: see below.")
    return found


def _of_several_versions(folders: Iterable[Path]) -> list[str]:
    """Say so where a sweep went on after its code or its libraries had changed."""
    commits, libraries = set(), set()
    for run in map(Run.read, folders):
        commits.add(run.tags.get("mlflow.source.git.commit", "")[:10] or "an unknown one")
        libraries.add(", ".join(f"{name} {it}" for name, it in run.result["versions"].items()))
    found = []
    if len(commits) > 1:
        found.append(f"Federations are of several commits: {', '.join(sorted(commits))}.")
    if len(libraries) > 1:
        found.append(f"Federations are of several libraries: {'; '.join(sorted(libraries))}.")
    return found


def _missing(state: Mapping[str, Any]) -> list[Block]:
    rows = [
        [run["status"], run["message"] or "-", run["folder"]]
        for run in state["runs"]
        if run["status"] != "done"
    ]
    return [Table(["status", "message", "federation"], rows, names=3)] if rows else []


def _facts(state: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Say what differs between the federations, and what is the same in all of them.

    What follows from the method or the split, such as who labels, stands beside its name; what
    differs in other ways, such as the number of images, is left out.
    """
    told = {"clients", "IPC", "seed", "started", "config SHA-256", "MLflow run"}
    axes = []
    for name, values in state["axes"].items():
        fact = {"alpha": "split", "distiller": "method"}.get(name)
        if len(values) == 1 and fact:
            continue  # the fact says more
        told |= {fact or name}
        axes.append((name, ", ".join("iid" if v is None else str(v) for v in values)))
    federations = {row.folder: row.line.facet for row in rows}
    every = [(facet, dict(facts(Run.read(folder)))) for folder, facet in federations.items()]
    same = []
    for fact in every[0][1]:
        said: dict[str, dict[Facet, None]] = {}
        for facet, found in every:
            said.setdefault(found.get(fact, "-"), {})[facet] = None
        if fact not in told and (text := _by_facet(said)):
            same.append((fact, text))
    total = state.get("seconds")
    spent = [("time of the sweep", duration(total))] if total is not None else []
    return [*axes, *same, ("started", str(state["created"])), *spent]


def _by_facet(values: Mapping[str, Collection[Facet]]) -> str:
    """Write a value, or several with the methods and splits that have them; else nothing."""
    if len(values) == 1:
        return next(iter(values))
    of = [facet for facets in values.values() for facet in facets]
    if len({*of}) < len(of):  # federations of one method and split differ
        return ""
    names = comparison.facets(of)
    return "; ".join(
        f"{value} ({', '.join(names[facet] for facet in facets)})"
        for value, facets in values.items()
    )


def _links(folder: Path, state: Mapping[str, Any], output: Path) -> list[tuple[str, str, str]]:
    kept = sorted((folder / comparison_files.FOLDER).glob("*"))
    found = [link(path, output, "") for path in kept if path.suffix != ".partial"]
    return found + [
        link(folder / run["folder"], output, f"N = {run['clients']}, seed {run['seed']}")
        for run in state["runs"]
        if run["status"] == "done"
    ]


def _again(folder: Path, state: Mapping[str, Any], rows: Sequence[Row]) -> list[Block]:
    try:
        config = without_secrets((folder / results.CONFIG).read_text(encoding="utf-8"))
    except OSError:
        config = ""
    typed = state.get("commands", [state["command"]])
    command = without_secrets("\n".join(shlex.join(map(str, it)) for it in typed))
    tags = Run.read(rows[0].folder).tags if rows else {}
    return again(config, command, tags)
