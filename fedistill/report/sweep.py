"""The page of a sweep: accuracy over the number of clients, and what stands beside it.

Federations that failed, or are still to come, are listed; the rest of the page is about those
that are done.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedistill import __version__, charts, comparison, comparison_files, findings, results
from fedistill.comparison import Facet, Line, Point, Row
from fedistill.journal import without_secrets
from fedistill.report.cautions import alone, warnings
from fedistill.report.curves import matching
from fedistill.report.one_shot import beside_one_shot
from fedistill.report.page import (
    Block,
    Chart,
    Facts,
    Findings,
    Headline,
    Links,
    Page,
    Pictures,
    Section,
    Table,
    Text,
    Warnings,
    duration,
    score,
)
from fedistill.report.paper import beside_paper
from fedistill.report.recorded import Run
from fedistill.report.run import again, facts, link
from fedistill.report.sweep_costs import baselines, costs
from fedistill.report.sweep_pictures import features, partitions, sheets

_FEATURES = (
    "Real images (dots) and synthetic ones (stars), seen by a student: t-SNE of its features"
)
Curves = Mapping[Line, Mapping[int, Point]]


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
        Section("Files", [Links(_links(folder, state, output))]),
        Section("Do it again", _again(folder, state, rows)),
    ]
    return Page(
        title=f"{state['name']}: a sweep",
        subtitle=f"{done} of {len(state['runs'])} federations done, {state['created']}",
        sections=sections,
        version=__version__,
    )


def _results(state: Mapping[str, Any], rows: Sequence[Row]) -> list[Section]:
    curves, teachers = comparison.curves(rows), comparison.teachers(rows)
    if len({row.clients for row in rows}) == 1 and len(comparison.facets(curves)) > 1:
        first = [Section("Accuracy of the methods", _methods(state, rows, curves, teachers))]
    else:
        accuracy = _accuracy(state, rows, curves, teachers)
        first = [
            Section("Accuracy over the number of clients", accuracy),
            Section("Two findings of the paper", _findings(curves, teachers)),
        ]
    return [
        *first,
        Section("Beside the paper's table", beside_paper(rows)),
        Section("Beside one-shot methods", beside_one_shot(rows)),
        Section("Beside the distilled sets", baselines(rows)),
        Section("Other networks", _other_networks(rows)),
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


def _accuracy(
    state: Mapping[str, Any],
    rows: Sequence[Row],
    curves: Curves,
    teachers: Mapping[Facet, Mapping[int, float]],
) -> list[Block]:
    names, labels = comparison.facets(curves), comparison.labels(curves)
    cards = []
    for line, curve in curves.items():
        clients = findings.best(curve)
        among = f", the best of {len(curve)}" if len(curve) > 1 else ""
        beside = f"at N = {clients}{among}; n={curve[clients].n}"
        cards.append((labels[line], score(*curve[clients]), beside))
    pictures = [
        Chart(
            charts.inline_svg(charts.accuracy_over_clients([panel]), f"clients-{number}"),
            _caption(panel.title),
        )
        for number, panel in enumerate(comparison_files.panels(rows))
    ]
    blocks: list[Block] = [
        Headline(cards),
        Warnings(_warnings(state, rows)),
        Pictures([*pictures, *_across(curves, names)]),
    ]
    for facet, name in names.items():
        blocks.append(_grid(curves, facet, teachers.get(facet, {}), name))
    return blocks


def _methods(
    state: Mapping[str, Any],
    rows: Sequence[Row],
    curves: Curves,
    teachers: Mapping[Facet, Mapping[int, float]],
) -> list[Block]:
    """Return the table method x IPC of a sweep with one number of clients; the best stand out."""
    names, clients = comparison.facets(curves), rows[0].clients
    sizes = sorted({line.ipc for line in curves})
    found = {(line.facet, line.ipc): curve[clients] for line, curve in curves.items()}
    cell, summed = _summed([*found.values()])
    cells = [
        [
            name,
            *(cell(found.get((facet, ipc))) for ipc in sizes),
            _mean(teachers.get(facet, {}).get(clients)),
        ]
        for facet, name in names.items()
    ]
    strong = set()
    for column, ipc in enumerate(sizes, start=1):
        best = max(point.mean for (_, size), point in found.items() if size == ipc)
        strong |= {
            (number, column)
            for number, facet in enumerate(names)
            if (facet, ipc) in found and found[facet, ipc].mean == best
        }
    caption = f"N = {clients}. {summed} Marked: the best of each IPC."
    head = ["method", *(f"IPC {ipc}" for ipc in sizes), "teachers, mean"]
    return [
        Warnings(_warnings(state, rows)),
        Table(head, cells, frozenset(strong), names=1, caption=caption),
    ]


def _caption(name: str) -> str:
    start = f"{name}. " if name else ""
    return (
        f"{start}Mean of all students of all seeds; error bars: standard deviation. Dashed: mean "
        "accuracy of the clients' own models on the same test split."
    )


def _across(curves: Curves, names: Mapping[Facet, str]) -> list[Chart]:
    """Draw one chart for each IPC where methods or alphas can be compared."""
    if len(names) < 2:
        return []
    drawn = []
    for ipc in sorted({line.ipc for line in curves}):
        lines = {names[line.facet]: curve for line, curve in curves.items() if line.ipc == ipc}
        panel = charts.Panel(f"IPC {ipc}", lines)
        figure = charts.accuracy_over_clients([panel])
        drawn.append(
            Chart(charts.inline_svg(figure, f"across-{ipc}"), f"IPC {ipc}: all beside each other.")
        )
    return drawn


def _grid(curves: Curves, facet: Facet, teachers: Mapping[int, float], name: str) -> Table:
    """Return the table N x IPC, the best N of each IPC standing out."""
    own = {line.ipc: curve for line, curve in curves.items() if line.facet == facet}
    clients = sorted({n for curve in own.values() for n in curve})
    cell, summed = _summed([point for curve in own.values() for point in curve.values()])
    cells = [
        [str(n), *(cell(curve.get(n)) for curve in own.values()), _mean(teachers.get(n))]
        for n in clients
    ]
    strong = {
        (clients.index(findings.best(curve)), column)
        for column, curve in enumerate(own.values(), start=1)
        if len(clients) > 1  # one alone is the best of none
    }
    caption = summed + " Marked: the best N of each IPC." * bool(strong)
    return Table(
        ["N", *(f"IPC {ipc}" for ipc in own), "teachers, mean"],
        cells,
        frozenset(strong),
        caption=f"{name}: {caption}" if name else caption,
    )


def _summed(points: Sequence[Point]) -> tuple[Callable[[Point | None], str], str]:
    """Return how to write the cells of a table, and what they are: n stands once where it can."""
    counts = {point.n for point in points}
    alike, most = len(counts) == 1, max(counts)

    def cell(point: Point | None) -> str:
        if point is None:
            return "-"
        return score(*point) if alike else f"{score(*point)} (n={point.n})"

    if most == 1:
        return cell, "Top-1 in percent, of one student."
    students = f"{most} students" if alike else "n students"
    return cell, f"Top-1 in percent, mean and standard deviation over {students} of all seeds."


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


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


def _findings(curves: Curves, teachers: Mapping[Facet, Mapping[int, float]]) -> list[Block]:
    if len({clients for curve in curves.values() for clients in curve}) < 2:
        return []
    checked = []
    for facet, name in comparison.facets(curves).items():
        own = {line: curve for line, curve in curves.items() if line.facet == facet}
        checked += [
            finding._replace(claim=f"{name}: {finding.claim}" if name else finding.claim)
            for finding in findings.check(own, teachers.get(facet, {}))
        ]
    return [
        Text(
            "What the paper on Distributed Boosting reports for ResNet-18 on CIFAR, split iid, "
            "held against the numbers of this sweep."
        ),
        Findings(checked),
    ]


def _other_networks(rows: Sequence[Row]) -> list[Block]:
    """Return the table N x IPC for every student's network but the first."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        _, *others = row.result["sets"][str(row.line.ipc)]["students"].items()
        for model, scores in others:
            models.setdefault(model, []).append(replace(row, top1=tuple(scores["top1"])))
    blocks: list[Block] = []
    for model, own in models.items():
        curves, teachers = comparison.curves(own), comparison.teachers(own)
        for facet, name in comparison.facets(curves).items():
            title = f"{model}, {name}" if name else model
            blocks.append(_grid(curves, facet, teachers.get(facet, {}), title))
    return blocks


def _missing(state: Mapping[str, Any]) -> list[Block]:
    rows = [
        [run["status"], run["message"] or "-", run["folder"]]
        for run in state["runs"]
        if run["status"] != "done"
    ]
    return [Table(["status", "message", "federation"], rows, names=3)] if rows else []


def _facts(state: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Say what differs between the federations, and what is the same in all of them.

    What follows from what differs, such as the number of images, is left out.
    """
    told = {"clients", "IPC", "seed", "started", "config SHA-256", "MLflow run"}
    axes = []
    for name, values in state["axes"].items():
        fact = {"alpha": "split", "distiller": "method"}.get(name)
        if len(values) == 1 and fact:
            continue  # the fact says more
        told |= {fact or name}
        axes.append((name, ", ".join("iid" if v is None else str(v) for v in values)))
    every = [facts(Run.read(folder)) for folder in dict.fromkeys(row.folder for row in rows)]
    same = [it for it in every[0] if it[0] not in told and all(it in other for other in every)]
    total = state.get("seconds")
    spent = [("time of the sweep", duration(total))] if total is not None else []
    return [*axes, *same, ("started", str(state["created"])), *spent]


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
