"""How closely the sets of several methods are matched, from a sweep's journals (MIBDC, Fig. 4).

Methods that match gradients note the loss of each set's matching, `recover/matching/ipc-10`, and
so does the server's co-training. Put beside each other they show what guidance does to it.
"""

from collections.abc import Iterable

from fedistill.comparison import Row, facets
from fedistill.journal import JOURNAL, points, read_events

Curve = list[tuple[int, float]]


def matching_curves(rows: Iterable[Row]) -> dict[int, dict[str, Curve]]:
    """Return (step, loss) by IPC and method, where two methods or more have noted them.

    Of each method it is the federation with the most clients, its first seed and client.

    Args:
        rows: of a sweep.
    """
    found = list(rows)
    shown = {}
    for row in sorted(found, key=lambda it: (it.clients, -it.seed)):
        shown[row.line.facet] = row
    curves: dict[int, dict[str, Curve]] = {}
    for facet, name in facets(row.line for row in found).items():
        row = shown[facet]
        noted = {f"{stage}/matching/ipc-{ipc}": int(ipc)
                 for ipc in row.result["sets"] for stage in ("cotrain", "recover")}  # fmt: skip
        for event, _ in read_events(row.folder / JOURNAL):
            if event["event"] == "curve" and event["name"] in noted:
                own = curves.setdefault(noted[event["name"]], {})
                own.setdefault(name, [(point.step, point.value) for point in points(event)])
    return {ipc: curves[ipc] for ipc in sorted(curves) if len(curves[ipc]) > 1}
