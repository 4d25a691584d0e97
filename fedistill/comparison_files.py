"""The comparison of a sweep as files: `comparison/` holds the charts and the table.

They hold results alone, no times: the same results give the same bytes, so that a sweep that was
killed and resumed ends with the files of one that was not.
"""

import csv
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedistill import charts, comparison, results
from fedistill.comparison import Row
from fedistill.matching_curves import matching_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "comparison"
_CHART = "accuracy_vs_clients"
_WAYS = ("up", "down")
Cell = str | int | float | None


def write(folder: Path) -> list[Path]:
    """Write the files, each in one step.

    Args:
        folder: of a sweep.

    Returns:
        Paths of the files; of a sweep that has no result yet, none.

    Raises:
        OutputError: the folder holds no sweep, or cannot be written.
    """
    rows = comparison.rows(folder)
    if not rows:
        return []
    columns, data = table(rows)
    tree = {"columns": columns, "data": data}  # as pandas' `split`, which MLflow shows as a table
    contents = {
        f"{_CHART}.png": charts.png(figure(rows)),
        f"{_CHART}.svg": charts.svg(figure(rows), _CHART).encode(),
        "table.csv": _csv(columns, data).encode(),
        "table.json": (json.dumps(tree) + "\n").encode(),
        "table.html": _html(columns, data, comparison.read(folder)["name"]).encode(),
    }
    for ipc, curves in matching_curves(rows).items():
        contents[f"matching_ipc-{ipc}.png"] = charts.png(charts.losses(curves, "step"))
    paths = []
    for name, content in contents.items():
        paths.append(folder / FOLDER / name)
        results.write_whole(paths[-1], content)
    return paths


def figure(rows: Sequence[Row]) -> "Figure":
    """Draw accuracy over the number of clients: a panel for each method and alpha."""
    return charts.accuracy_over_clients(panels(rows))


def panels(rows: Sequence[Row]) -> list[charts.Panel]:
    """Return the panels of the chart: in each a line for each IPC, and the teachers."""
    curves, teachers = comparison.curves(rows), comparison.teachers(rows)
    return [
        charts.Panel(
            title,
            {f"IPC {line.ipc}": curve for line, curve in curves.items() if line.facet == facet},
            teachers.get(facet, {}),
        )
        for facet, title in comparison.facets(curves).items()
    ]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[Cell]]]:
    """Return the names of the columns, and a line for each cell of the grid.

    Accuracies are in percent, rounded to 0.001; one alone has no deviation. Bytes are those of the
    set of this IPC alone, and of each row beside it, all counted on the wire; the mean of the
    federations.
    """
    names = sorted({name for row in rows for name in row.baselines})
    columns = ["distiller", "alpha", "clients", "ipc", "seeds", "mean", "std", "n", "teachers"]
    columns += [f"bytes_{way}" for way in _WAYS]
    columns += [
        f"{name}_{what}"
        for name in names
        for what in ("mean", "std", "n", *(f"bytes_{w}" for w in _WAYS))
    ]
    curves = {name: comparison.curves(rows, name) for name in (None, *names)}
    teachers = comparison.teachers(rows)
    data = []
    for line, curve in curves[None].items():
        for clients, point in curve.items():
            cell = [row for row in rows if (row.line, row.clients) == (line, clients)]
            known: list[Cell] = [line.distiller, line.alpha, clients, line.ipc, len(cell)]
            known += [round(point.mean, 3), _std(point), point.n]
            known.append(_rounded(teachers.get(line.facet, {}).get(clients)))
            known += [mean_bytes_of_rows(cell, None, way) for way in _WAYS]
            for name in names:
                beside = curves[name].get(line, {}).get(clients)
                known.append(_rounded(beside.mean if beside else None))
                known.append(_std(beside) if beside else None)
                known.append(beside.n if beside else None)
                known += [mean_bytes_of_rows(cell, name, way) for way in _WAYS]
            data.append(known)
    return columns, data


def mean_bytes(rows: Sequence[Row], way: str) -> int | None:
    """Return the bytes that went up or down in one federation, on the average of some."""
    return _mean(row.result.get("bytes", {}).get(way) for row in rows)


def mean_bytes_of_rows(rows: Sequence[Row], name: str | None, way: str) -> int | None:
    """Return the bytes that went up or down for a row beside some sets; None: for the sets."""
    if name is None:
        return _mean(bytes_of_set(row, way) for row in rows)
    return _mean(_bytes_beside(row, name, way) for row in rows)


def bytes_of_set(row: Row, way: str) -> int | None:
    """Return the bytes that went up or down for one set, as if it had been made alone.

    A result of an older version does not tell sets apart: then it is those of the federation.
    """
    own = row.result["sets"][str(row.line.ipc)].get("traffic")
    count: int | None = (own or row.result.get("bytes", {})).get(way)
    return count


def _bytes_beside(row: Row, name: str, way: str) -> int | None:
    scores = row.result["sets"][str(row.line.ipc)]["baselines"].get(name, {})
    count: int | None = (scores.get("bytes") or {}).get(way)
    return count


def _mean(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return round(sum(known) / len(known)) if known else None


def _std(point: comparison.Point) -> float | None:
    """Return the deviation of several values: one alone has none."""
    return round(point.std, 3) if point.n > 1 else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _csv(columns: Sequence[str], data: Sequence[Sequence[Cell]]) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows([columns, *data])
    return written.getvalue()


def _html(columns: Sequence[str], data: Sequence[Sequence[Cell]], name: str) -> str:
    """Return a page with the table alone; MLflow shows it in a frame."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = "\n".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in line) + "</tr>" for line in data
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(name)}</title>\n<style>"
        "body{font:14px system-ui,sans-serif;background:#fff;color:#1b1f24}"
        "table{border-collapse:collapse}th,td{padding:.25em .7em;text-align:right;"
        "border-bottom:1px solid #ddd;white-space:nowrap}</style></head>\n"
        f"<body><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n"
        "</table></body></html>\n"
    )


def _text(value: Cell) -> str:
    return "" if value is None else html.escape(str(value))
