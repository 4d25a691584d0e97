"""What a sweep's federations cost, and the rows beside their distilled sets."""

from collections.abc import Mapping, Sequence

from fedistill import charts, comparison
from fedistill.comparison import Facet, Line, Point, Row
from fedistill.comparison_files import mean_bytes, mean_bytes_of_rows
from fedistill.report.costs import bytes_by_message, cost_of, cost_of_set
from fedistill.report.page import Block, Chart, Pictures, Table, duration, score, size
from fedistill.rows import short

_COSTS = (
    "Accuracy and the megabytes that a federation sends for this set alone; the numbers are N, of "
    "long lines at both ends."
)
_TRAFFIC = (
    "Bytes of a federation's messages for its sets and their labels by their kind, up / down; "
    "means over the federations that sent such."
)
Priced = tuple[float, Point, str]  # megabytes, accuracy, name


def baselines(rows: Sequence[Row]) -> list[Block]:
    """Return a line for each number of clients and IPC, and a column for each row beside it.

    A row need not be in every federation; it is compared with the sets of those that have it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.baselines))
    if not names:
        return []
    ours = comparison.curves(rows)
    facets = comparison.facets(ours)
    several = len(facets) > 1
    table: list[list[str]] = []
    sent: list[list[str]] = []
    strong, partly = set(), False
    for line, curve in ours.items():
        for clients, point in curve.items():
            start = [facets[line.facet]] * several + [f"{line.ipc}", f"{clients}"]
            cell, texts = _cell(rows, line, clients), list[str]()
            for name in names:
                having = [row for row in cell if name in row.baselines]
                if name == "random" and _as_good(having, name):
                    strong.add((len(table), len(start) + 1 + len(texts)))
                texts.append(_beside_some(having, name, len(cell)))
                partly |= 0 < len(having) < len(cell)
            table.append([*start, score(*point), *texts])
            bytes_up = [mean_bytes_of_rows(cell, name, "up") for name in (None, *names)]
            sent.append([*start, *("-" if it is None else size(it) for it in bytes_up)])
    head = [comparison.facets_are(ours)] * several + ["IPC", "N", "distilled set"]
    several_values = any(len(row.top1) > 1 for row in rows) or len(rows) > len(table)
    spread = ", mean and standard deviation over all students of all seeds" * several_values
    partial = " (1 of 2): one of two federations has this row."
    marked = (
        " Marked: random real images that are at least as good as the distilled ones of the same "
        "federations."
    )
    return [
        Table(
            [*head, *(short(name) for name in names)],
            table,
            frozenset(strong),
            names=1 if several else 0,
            caption=f"Top-1 in percent{spread}."
            + (partial if partly else "")
            + (marked if strong else ""),
        ),
        Table(
            [*head, *(short(name) for name in names)],
            sent,
            names=1 if several else 0,
            caption="Bytes that the clients sent up for each, all counted on the wire, as if it "
            "had been made alone.",
        ),
    ]


def _as_good(rows: Sequence[Row], name: str) -> bool:
    """Say whether a row is at least as good as the distilled sets of the same federations."""
    theirs, ours = _together(rows, name), _together(rows)
    return theirs is not None and ours is not None and theirs.mean >= ours.mean


def _beside_some(rows: Sequence[Row], name: str, federations: int) -> str:
    """Write the accuracy of a row, and how many federations it is of where some lack it."""
    found = _together(rows, name)
    if found is None:
        return "-"
    some = f" ({len(rows)} of {federations})" if len(rows) < federations else ""
    return f"{score(*found)}{some}"


def _together(rows: Sequence[Row], name: str | None = None) -> Point | None:
    """Sum up the accuracies of the sets of one cell, or of a row beside all of them."""
    found = [value for row in rows for value in (row.baselines[name] if name else row.top1)]
    return comparison.point(found) if found else None


def costs(rows: Sequence[Row]) -> list[Block]:
    """Return what a federation of each size sent and how long it took, on the average of seeds."""
    facets = comparison.facets(row.line for row in rows)
    several = len(facets) > 1
    stages = list(
        dict.fromkeys(
            stage for row in rows for stage, value in row.result["seconds"].items() if value
        )
    )
    messages = list(dict.fromkeys(kind for row in rows for kind in bytes_by_message(row.result)))
    times, traffic = [], []
    for (facet, clients), own in _federations(rows).items():
        start = [*([facets[facet]] * several), str(clients)]
        sent = [mean_bytes(own, way) for way in ("up", "down")]
        seconds = [sum(r.result["seconds"].get(s, 0.0) for r in own) / len(own) for s in stages]
        times.append(
            [
                *start,
                str(len(own)),
                *("-" if count is None else size(count) for count in sent),
                *(duration(value) for value in seconds),
            ]
        )
        traffic.append([*start, *(_up_and_down(own, kind) for kind in messages)])
    head = [comparison.facets_are(row.line for row in rows)] * several + ["N"]
    by_message = Table([*head, *messages], traffic, names=int(several), caption=_TRAFFIC)
    return [
        Table(
            [*head, "federations", "up", "down", *stages],
            times,
            names=int(several),
            caption="Of one federation, which makes the sets of all IPC: bytes of the messages "
            "for its sets and their labels, and time by stage, where squeeze and recover are "
            "summed over the clients. "
            "Means over seeds. Teachers and images from the artefact store count with the time "
            "that making them took; students from there, such as those of all data, which all "
            "federations of a seed have in common, took none.",
        ),
        *([by_message] if messages else []),
        *_per_megabyte(rows),
    ]


def _federations(rows: Sequence[Row]) -> dict[tuple[Facet, int], list[Row]]:
    """Group federations by method and number of clients; sets of several IPC share one."""
    groups: dict[tuple[Facet, int], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.line.facet, row.clients), {})[str(row.folder)] = row
    return {
        key: [*groups[key].values()]
        for key in sorted(groups, key=lambda it: (it[0].distiller, it[0].alpha or 0.0, it[1]))
    }


def _up_and_down(rows: Sequence[Row], kind: str) -> str:
    """Write the mean bytes of a kind of message, in both directions."""
    found = [counts for row in rows if (counts := bytes_by_message(row.result).get(kind))]
    if not found:
        return "-"
    return " / ".join(size(sum(it[way] for it in found) / len(found)) for way in ("up", "down"))


def _per_megabyte(rows: Sequence[Row]) -> list[Pictures]:
    """Draw accuracy over megabytes: all cells, and each IPC with the rows beside it."""
    curves = comparison.curves(rows)
    ours = {line: _priced(rows, line, curve) for line, curve in curves.items()}
    beside = _priced_baselines(rows)
    cells: list[Chart] = []
    for number, (facet, name) in enumerate(comparison.facets(curves).items()):
        series = [
            charts.Cost(f"IPC {line.ipc}", points)
            for line, points in ours.items()
            if line.facet == facet and points
        ]
        if sum(len(cost.points) for cost in series) > 1:  # one alone compares nothing
            chart = charts.inline_svg(charts.accuracy_per_megabyte(series), f"megabytes-{number}")
            cells.append(Chart(chart, f"{name}: {_COSTS}" if name else _COSTS))
    labels = comparison.labels(curves)
    compared: list[Chart] = []
    for number, (line, points) in enumerate(ours.items()):
        if points and line in beside:
            series = [charts.Cost("distilled set", points), *beside[line]]
            chart = charts.inline_svg(charts.accuracy_per_megabyte(series), f"beside-{number}")
            compared.append(Chart(chart, f"{labels[line]}, and the rows beside it."))
    return [Pictures(cells), Pictures(compared, "Each IPC with the rows beside it")]


def _priced(rows: Sequence[Row], line: Line, curve: Mapping[int, Point]) -> list[Priced]:
    """Return the points of a line with the megabytes of their sets."""
    points = []
    for clients, point in curve.items():
        costs = [cost_of_set(row.result, str(line.ipc)) for row in _cell(rows, line, clients)]
        known = [cost for cost in costs if cost is not None]
        if known:
            points.append((sum(known) / len(known), point, f"{clients}"))
    return points


def _priced_baselines(rows: Sequence[Row]) -> dict[Line, list[charts.Cost]]:
    """Return the rows beside each line, those whose bytes are known."""
    found: dict[Line, list[charts.Cost]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.baselines):
        for line, curve in comparison.curves(rows, name).items():
            points = []
            for clients, point in curve.items():
                costs = [_beside(row, name) for row in _cell(rows, line, clients)]
                known = [cost for cost in costs if cost is not None]
                if known:
                    points.append((sum(known) / len(known), point, f"{clients}"))
            if points:
                label = short(name)
                found.setdefault(line, []).append(charts.Cost(label, points, real=True))
    return found


def _cell(rows: Sequence[Row], line: Line, clients: int) -> list[Row]:
    return [row for row in rows if (row.line, row.clients) == (line, clients)]


def _beside(row: Row, name: str) -> float | None:
    return cost_of(row.result["sets"][str(row.line.ipc)]["baselines"].get(name, {}))
