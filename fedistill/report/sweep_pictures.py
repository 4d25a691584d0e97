"""Pictures of some federations of a sweep, in place of all of them."""

from collections.abc import Iterable, Sequence

from fedistill.comparison import Row
from fedistill.report.page import Image


def sheets(rows: Sequence[Row]) -> list[Image | None]:
    """Show a set of each IPC and method, from the federation with the most clients."""
    shown = {}
    for row in sorted(rows, key=lambda it: (it.clients, -it.seed)):
        shown[row.line.distiller, row.line.ipc] = row
    several = len({distiller for distiller, _ in shown}) > 1
    return [
        Image.read(
            row.folder / "figures" / f"set_ipc-{ipc}.png",
            f"{f'{distiller}, ' * several}IPC {ipc}, N = {row.clients}, seed {row.seed}",
        )
        for (distiller, ipc), row in sorted(shown.items())
    ]


def partitions(rows: Iterable[Row]) -> list[Image | None]:
    """Show who holds what for each alpha, in the federation with the most clients."""
    shown = {}
    for row in sorted(rows, key=lambda it: (it.clients, -it.seed)):
        shown[row.line.alpha] = row
    return [
        Image.read(
            row.folder / "figures" / "partition.png",
            f"{'' if alpha is None else f'alpha {alpha:g}, '}N = {row.clients}, seed {row.seed}",
            wide=True,
        )
        for alpha, row in sorted(shown.items(), key=lambda it: it[0] or 0.0)
    ]
