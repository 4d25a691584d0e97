"""What a run cost: bytes by client and stage, time by stage, accuracy for each megabyte."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedistill import charts
from fedistill.report.page import Block, Chart, Pictures, Table, duration, score, size
from fedistill.report.recorded import Run, point
from fedistill.rows import short

_MEGA = 1e6


def clients(run: Run) -> list[Block]:
    """Return what each client holds, how good its teacher is, and what it sent and received."""
    result, held = run.result, run.held
    traffic = result["bytes"].get("per_client", {})
    names = result.get("devices", {})
    rows = []
    for number, top1 in enumerate(result["teachers"]["top1"]):
        ways = traffic.get(str(number), {})
        rows.append(
            [
                _called(number, names.get(str(number)), number in result["absent_clients"]),
                f"{held[number]:,}" if number < len(held) else "-",
                "-" if top1 is None else f"{top1:.2f}",
                *(size(ways[way]) if way in ways else "-" for way in ("up", "down")),
            ]
        )
    head = ["client", "real images", "teacher top-1 %", "sent up", "sent down"]
    total = [size(result["bytes"][way]) for way in ("up", "down")]
    mean = result["teachers"]["top1_mean"]
    held_by_all = f"{sum(held):,}" if held else "-"
    rows.append(["all", held_by_all, "-" if mean is None else f"{mean:.2f} (mean)", *total])
    return [
        Table(head, rows, frozenset((len(rows) - 1, n) for n in range(len(head)))),
        Pictures([run.image("partition", "Who holds what: images by client and class.")]),
    ]


def _called(number: int, name: str | None, absent: bool) -> str:
    return f"{number}{f' {name}' if name else ''}{' (absent)' if absent else ''}"


def costs(run: Run) -> list[Block]:
    """Return time and bytes by stage, accuracy for each megabyte, and the sizes of the sets."""
    result = run.result
    stages = bytes_by_message(result)
    rows = [[stage, size(sums["up"]), size(sums["down"])] for stage, sums in stages.items()]
    rows.append(["all", *(size(result["bytes"][way]) for way in ("up", "down"))])
    bytes_table = Table(
        ["message", "up", "down"],
        rows,
        frozenset((len(rows) - 1, n) for n in range(3)),
        caption="Bytes of the serialised messages of all clients together, for the sets and their "
        "labels; those of FedAvg, of tests at home and of each row beside are counted by row.",
    )
    seconds = [(stage, value) for stage, value in result["seconds"].items() if value]
    time_table = Table(
        ["stage", "time"],
        [[stage, duration(value)] for stage, value in seconds],
        caption="Squeeze and recover are summed over the clients; the others are wall time, and "
        "the total is that of the whole command.",
    )
    return [time_table, bytes_table, *_per_megabyte(run), _files(run)]


def bytes_by_message(result: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return the bytes up and down of all clients of a run, by the kind of message."""
    stages: dict[str, dict[str, int]] = {}
    for ways in result["bytes"].get("per_client", {}).values():
        for stage, counts in ways.get("stages", {}).items():
            sums = stages.setdefault(stage, {"up": 0, "down": 0})
            for way in sums:
                sums[way] += counts.get(way, 0)
    return stages


def cost_of(row: Mapping[str, Any]) -> float | None:
    """Return the megabytes that something sent up and down, where its row says so."""
    counts = row.get("bytes") or {}
    found = sum(counts.get(way) or 0 for way in ("up", "down"))
    return found / _MEGA if found else None


def cost_of_set(result: Mapping[str, Any], ipc: str) -> float | None:
    """Return the megabytes of one set of a run, as if it had been made alone.

    A result of an older version does not tell them apart: then it is those of the whole run.
    """
    return cost_of({"bytes": result["sets"][ipc].get("traffic")}) or cost_of(result)


def _per_megabyte(run: Run) -> list[Block]:
    """Say what accuracy cost."""
    sets = run.result["sets"]
    ours = [
        (cost, point(next(iter(it["students"].values()))), ipc)
        for ipc, it in sets.items()
        if (cost := cost_of_set(run.result, ipc))
    ]
    series = [charts.Cost("distilled set", ours)] if ours else []
    names = {name: None for it in sets.values() for name in it["baselines"]}
    for name in names:
        beside = [
            (cost, point(it["baselines"][name]), ipc)
            for ipc, it in sets.items()
            if name in it["baselines"] and (cost := cost_of(it["baselines"][name]))
        ]
        if beside:
            series.append(charts.Cost(short(name), beside, real=True))
    caption = "Accuracy and the megabytes that the clients sent and received for it alone."
    rows = [
        [cost.label, name, score(*scores), f"{megabytes:.3g}", f"{scores.mean / megabytes:.3g}"]
        for cost in series
        for megabytes, scores, name in cost.points
    ]
    head = ["trained on", "IPC", "top-1 %", "MB", "points per MB"]
    table = Table(head, rows, names=2, caption=caption)
    if len({row[3] for row in rows}) < 2:  # one cost: nothing to draw it against
        return [table] if rows else []
    drawn = charts.inline_svg(charts.accuracy_per_megabyte(series), "megabytes")
    return [Pictures([Chart(drawn, caption)]), replace(table, caption="")]


def _files(run: Run) -> Table:
    rows = [
        [ipc, str(it["images"]), *(size(it["bytes"][kind]) for kind in ("images", "labels"))]
        for ipc, it in run.result["sets"].items()
        if "bytes" in it
    ]
    return Table(
        ["IPC", "images", "file of images", "file of soft labels"],
        rows,
        caption="What a user of the set downloads.",
    )
