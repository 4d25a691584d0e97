"""Pictures of some federations of a sweep, in place of all of them."""

from collections.abc import Iterable, Sequence

from fedistill.comparison import Row
from fedistill.report.page import Image
from fedistill.report.recorded import Run


def sheets(rows: Sequence[Row]) -> list[Image | None]:
    """Show a set of each IPC and method, from the federation with the most clients."""
    return _of_each_set(rows, "set")


def features(rows: Sequence[Row]) -> list[Image | None]:
    """Show what a student sees in these sets and in real images, where it was drawn."""
    return _of_each_set(rows, "features")


def _of_each_set(rows: Sequence[Row], kind: str) -> list[Image | None]:
    shown = {}
    for row in _largest_last(rows):
        shown[row.line.distiller, row.line.ipc] = row
    several = len({distiller for distiller, _ in shown}) > 1
    return [
        Image.read(
            row.folder / "figures" / f"{kind}_ipc-{ipc}.png",
            f"{f'{distiller}, ' * several}IPC {ipc}, N = {row.clients}, seed {row.seed}",
        )
        for (distiller, ipc), row in sorted(shown.items())
    ]


def partitions(rows: Iterable[Row]) -> list[Image | None]:
    """Show who holds what for each way to split, in the federation with the most clients."""
    shown = {}
    for row in _largest_last(rows):
        shown[row.line.alpha or 0.0, Run.read(row.folder).split] = row
    return [
        Image.read(
            row.folder / "figures" / "partition.png",
            f"{split}, N = {row.clients}, seed {row.seed}",
            wide=True,
        )
        for (_, split), row in sorted(shown.items())
    ]


def _largest_last(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda it: (it.clients, -it.seed))
