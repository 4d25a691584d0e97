"""What a sweep has found: accuracy by number of clients, by split and by method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedistill import charts, comparison, comparison_files, findings
from fedistill.comparison import Facet, Line, Point, Row
from fedistill.report.page import (
    Block,
    Chart,
    Findings,
    Headline,
    Pictures,
    Section,
    Table,
    Text,
    Warnings,
    score,
)

Curves = Mapping[Line, Mapping[int, Point]]
Teachers = Mapping[Facet, Mapping[int, float]]


def accuracy(rows: Sequence[Row], warnings: Sequence[str]) -> list[Section]:
    """Return the first sections of the page: accuracies, and the paper's findings beside them.

    Args:
        rows: of the sweep.
        warnings: what is amiss with it.
    """
    curves, teachers = comparison.curves(rows), comparison.teachers(rows)
    methods = {line.distiller for line in curves}
    if len({row.clients for row in rows}) == 1 and len(comparison.facets(curves)) > 1:
        of = "methods" if len(methods) > 1 else "splits"
        blocks = [Warnings([*warnings]), _by_facet(curves, teachers), Pictures(_over_alpha(rows))]
        return [Section(f"Accuracy of the {of}", blocks)]
    return [
        Section("Accuracy over the number of clients", _over_clients(rows, warnings)),
        Section("Two findings of the paper", _findings(curves, teachers)),
    ]


def other_networks(rows: Sequence[Row]) -> list[Block]:
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


def _over_clients(rows: Sequence[Row], warnings: Sequence[str]) -> list[Block]:
    curves, teachers = comparison.curves(rows), comparison.teachers(rows)
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
            _caption(panel),
        )
        for number, panel in enumerate(comparison_files.panels(rows))
        if len({clients for curve in panel.curves.values() for clients in curve}) > 1
    ]
    blocks: list[Block] = [
        Headline(cards),
        Warnings([*warnings]),
        Pictures([*pictures, *_across(curves, names), *_over_alpha(rows)]),
    ]
    for facet, name in names.items():
        blocks.append(_grid(curves, facet, teachers.get(facet, {}), name))
    return blocks


def _by_facet(curves: Curves, teachers: Teachers) -> Table:
    """Return the table of a sweep with one number of clients: a line for each method and split.

    The best method of each split stands out; no split is better than another one.
    """
    names, (clients,) = comparison.facets(curves), {n for curve in curves.values() for n in curve}
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
        for number, facet in enumerate(names):
            rivals = [
                point.mean
                for (other, size), point in found.items()
                if (other.alpha, size) == (facet.alpha, ipc)
            ]
            if len(rivals) > 1 and (facet, ipc) in found:
                strong |= {(number, column)} if found[facet, ipc].mean == max(rivals) else set()
    alike = len({facet.alpha for facet in names}) == 1
    marked = f" Marked: the best of each IPC{'' if alike else ' and split'}."
    return Table(
        [comparison.facets_are(curves), *(f"IPC {ipc}" for ipc in sizes), "teachers, mean"],
        cells,
        frozenset(strong),
        names=1,
        caption=f"N = {clients}. {summed}{marked if strong else ''}",
    )


def _caption(panel: charts.Panel) -> str:
    """Say what a chart shows: error bars and teachers where it has some."""
    points = [point for curve in panel.curves.values() for point in curve.values()]
    title = f"{panel.title}. " if panel.title else ""
    bars = "; error bars: standard deviation" * any(point.n > 1 for point in points)
    dashed = " Dashed: mean accuracy of the clients' own models on the same test split."
    return f"{title}Mean of all students of all seeds{bars}.{dashed * bool(panel.teachers)}"


def _across(curves: Curves, names: Mapping[Facet, str]) -> list[Chart]:
    """Draw one chart for each IPC where methods or splits can be compared."""
    if len(names) < 2:
        return []
    drawn = []
    for ipc in sorted({line.ipc for line in curves}):
        lines = {names[line.facet]: curve for line, curve in curves.items() if line.ipc == ipc}
        figure = charts.accuracy_over_clients([charts.Panel(f"IPC {ipc}", lines)])
        drawn.append(
            Chart(charts.inline_svg(figure, f"across-{ipc}"), f"IPC {ipc}: all beside each other.")
        )
    return drawn


def _over_alpha(rows: Sequence[Row]) -> list[Chart]:
    """Draw accuracy over the splits, for each method and number of clients.

    Only where splits are more than numbers of clients: else the charts over these tell more.
    """
    curves, teachers = comparison.curves(rows), comparison.teachers(rows)
    alphas = comparison.alphas(curves)
    numbers = sorted({row.clients for row in rows})
    methods = list(dict.fromkeys(line.distiller for line in curves))
    drawn: list[Chart] = []
    for method in methods if len(alphas) > max(1, len(numbers)) else []:
        for clients in numbers:
            places = {alpha: place for place, alpha in enumerate(alphas)}
            lines: dict[str, dict[int, Point]] = {}
            for line, curve in curves.items():
                if line.distiller == method and clients in curve:
                    lines.setdefault(f"IPC {line.ipc}", {})[places[line.alpha]] = curve[clients]
            tested = {
                place: teachers[facet][clients]
                for alpha, place in places.items()
                if clients in teachers.get(facet := Facet(method, alpha), {})
            }
            if len({place for curve in lines.values() for place in curve}) < 2:
                continue
            title = ", ".join([method] * (len(methods) > 1) + [f"N = {clients}"])
            splits = {place: comparison.skew(alpha) for alpha, place in places.items()}
            panel = charts.Panel(title, lines, tested, x_label="split", x_names=splits)
            figure = charts.accuracy_over_clients([panel])
            drawn.append(Chart(charts.inline_svg(figure, f"alpha-{len(drawn)}"), _caption(panel)))
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


def _findings(curves: Curves, teachers: Teachers) -> list[Block]:
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
