"""What a reader must know before believing the numbers of a page."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedistill.report.recorded import Run
from fedistill.rows import listed, short


def warnings(run: Run) -> list[str]:
    """List what a reader must know before believing the numbers of a run."""
    result, found = run.result, []
    if result.get("evaluated_on") == "validation":
        found.append(
            "Tested on training images that were held out, not on the test split: these numbers "
            "are for tuning."
        )
    if result.get("uses_real_images"):
        found.append("The method uses real images: pictures of the clients' data left them.")
    absent = result["absent_clients"]
    if absent:
        numbers = ", ".join(map(str, absent))
        found.append(f"Absent clients: {numbers}. The others made their images.")
        why = result.get("absent_because", {})
        found += [f"Client {number}: {why[number]}" for number in why]
    unheard = result.get("absent_labellers")
    if unheard:
        numbers = ", ".join(map(str, unheard))
        found.append(f"Clients that took part and whose answers are in no label: {numbers}.")
    found += _rivals(run)
    if run.tags.get("git_dirty") == "true":
        found.append("The code held changes that were not committed.")
    return found


def _rivals(run: Run) -> list[str]:
    """Tell of rows that are not what their name says, or that are not there."""
    config = run.config  # an older one may lack some keys
    wanted = listed(config.get("baselines", []), config.get("fedavg", {}).get("rounds", 1))
    absent: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, list[str]] = {}
    for ipc, found in run.result["sets"].items():
        for name, row in found["baselines"].items():
            if "absent_clients" in row:
                absent[name] = row["absent_clients"]
        for name in wanted:
            if name not in found["baselines"]:
                missing.setdefault(name, []).append(ipc)
    told = []
    for name, rounds in absent.items():
        who = ", ".join(
            map(str, sorted({client for missed in rounds.values() for client in missed}))
        )
        times = f"{len(rounds)} round{'s' * (len(rounds) != 1)}"
        told.append(f"{short(name)}: clients were absent ({who}), in {times}.")
    return told + [
        f"Left out for IPC {', '.join(sizes)}: the row '{short(name)}'; the log says why."
        for name, sizes in missing.items()
    ]


def alone(students: Iterable[int]) -> list[str]:
    """Warn of an accuracy without a spread.

    Args:
        students: how many there are behind each accuracy that is shown.
    """
    warning = "One student alone: nothing is known about the spread of the accuracy."
    return [warning] * (min(students, default=2) < 2)
