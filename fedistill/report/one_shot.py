"""Published one-shot methods beside ours: the same data, split and number of clients."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from fedistill import comparison, published
from fedistill import published_one_shot as one_shot
from fedistill.comparison import Point, Row
from fedistill.config_students import ENSEMBLES
from fedistill.report.page import Block, Table, score
from fedistill.report.recorded import Run
from fedistill.rows import short

_BESIDE = ("fedavg_1", *ENSEMBLES)  # ours, of what they have too


def beside_one_shot(rows: Sequence[Row]) -> list[Block]:
    """Return accuracy over alpha, ours and theirs; empty for data or splits that they do not have.

    Networks and training may differ: the caption says so. Tests on another split than theirs,
    parts of the data and federations without all of their clients are left out.
    """
    fitting, names, students, clients = [], set(), set(), set()
    for row in rows:
        run = Run.read(row.folder)
        config = run.config
        name = published.data_name(config)
        if (
            name in one_shot.RIVALS
            and run.result.get("evaluated_on", "test") == "test"
            and not published.changed_data(config)
            and not run.result["absent_clients"]
            and config["partition"]["name"] == "dirichlet"
            and row.clients == one_shot.CLIENTS
            and row.line.alpha in one_shot.ALPHAS
        ):
            fitting.append(row)
            names.add(name)
            students.add(config["student"]["models"][0]["name"])
            clients |= {model["name"] for model in (*run.own_networks, *run.teacher_networks)}
    if len(names) != 1:
        return []
    alphas = sorted({alpha for row in fitting if (alpha := row.line.alpha) is not None})
    table = [
        *_ours(fitting, alphas),
        *(
            [
                f"{rival.name}, published",
                rival.leaves,
                *(f"{rival.top1[one_shot.ALPHAS.index(alpha)]:.1f}" for alpha in alphas),
            ]
            for rival in one_shot.RIVALS[names.pop()]
        ),
    ]
    caption = (
        f"Top-1 in percent, {one_shot.CLIENTS} clients. Published: {one_shot.PAPER}, ResNet-18, "
        f"200 local epochs, splits of their own; ours: {_networks(students, clients)}."
    )
    head = ["", "what is left", *(f"alpha {alpha:g}" for alpha in alphas)]
    return [Table(head, table, names=2, caption=caption)]


def _networks(students: Collection[str], clients: Collection[str]) -> str:
    """Name the networks of rows that are a set, and of those that are models of clients."""
    of_students, of_clients = (", ".join(sorted(names)) for names in (students, clients))
    if of_students == of_clients:
        return of_students
    return f"students {of_students}, clients {of_clients}"


def _ours(rows: Sequence[Row], alphas: Iterable[float]) -> list[list[str]]:
    """Return a line for each method and IPC, and for rows beside that do not depend on the IPC."""
    methods = list(dict.fromkeys(row.line.distiller for row in rows))
    curves = comparison.curves(rows)
    found = []
    for method in methods:
        for ipc in sorted({row.line.ipc for row in rows if row.line.distiller == method}):
            points = {
                line.alpha: curve[one_shot.CLIENTS]
                for line, curve in curves.items()
                if (line.distiller, line.ipc) == (method, ipc)
            }
            found.append([f"{method}, IPC {ipc}", "a set", *_cells(points, alphas)])
    for name in _BESIDE:
        left = "one model" if name == "fedavg_1" else "all clients' models"
        cells = {method: _beside(rows, method, name, alphas) for method in methods}
        cells = {method: found for method, found in cells.items() if {*found} != {"-"}}
        # Methods that share their teachers have this row in common.
        alike = len({*map(tuple, cells.values())}) == 1
        for method, values in [*cells.items()][: 1 if alike else None]:
            found.append([short(name) if alike else f"{short(name)}, {method}", left, *values])
    return found


def _beside(rows: Sequence[Row], method: str, name: str, alphas: Iterable[float]) -> list[str]:
    """Return the accuracies of a row that does not depend on the IPC, once a federation."""
    values: dict[float | None, dict[Path, Sequence[float]]] = {}
    for row in rows:
        if row.line.distiller == method and name in row.baselines:
            values.setdefault(row.line.alpha, {})[row.folder] = row.baselines[name]
    points = {
        alpha: comparison.point([*chain.from_iterable(found.values())])
        for alpha, found in values.items()
    }
    return _cells(points, alphas)


def _cells(points: Mapping[float | None, Point], alphas: Iterable[float]) -> list[str]:
    return [score(*points[alpha]) if alpha in points else "-" for alpha in alphas]
