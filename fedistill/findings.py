"""The two findings of the paper on Distributed Boosting, held against what a sweep has measured.

1. The best number of clients falls as IPC grows (Tables 3 and 5: 15 to 4, and 10 to 2).
2. A student of the distilled set stays below the mean accuracy of the clients' teachers (but for 3
   of 185 cells of its own tables).

A sweep may be too small to tell, and its students differ by chance: what is said here says so.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

from fedistill.comparison import Line, Point

Verdict = Literal["agrees", "differs", "open"]
_EXCEPTIONS = 0.05  # share of the cells that may be above: the paper has 0.016
Curve = Mapping[int, Point]  # accuracy by number of clients


class Finding(NamedTuple):
    """What the paper says, whether the sweep agrees, and why."""

    claim: str
    verdict: Verdict
    text: str


def best(curve: Curve) -> int:
    """Return the number of clients with the highest mean; the smallest of equals."""
    return max(curve, key=lambda clients: (curve[clients].mean, -clients))


def check(curves: Mapping[Line, Curve], teachers: Mapping[int, float]) -> list[Finding]:
    """Hold the lines of one chart against the paper's two findings.

    Args:
        curves: lines that differ in their IPC alone.
        teachers: mean accuracy of the clients' teachers, by number of clients.
    """
    by_ipc = {line.ipc: curves[line] for line in sorted(curves)}
    return [_best_clients(by_ipc), _below_teachers(by_ipc, teachers)]


def _best_clients(by_ipc: Mapping[int, Curve]) -> Finding:
    claim = "The best number of clients falls as IPC grows"
    # Numbers of clients that one line lacks would decide which of them is best.
    common = sorted(set.intersection(*(set(curve) for curve in by_ipc.values())))
    if len(by_ipc) < 2 or len(common) < 3:
        return Finding(
            claim,
            "open",
            f"Too little to tell: {_count(len(by_ipc), 'IPC')} and "
            f"{_count(len(common), 'number')} of clients that every IPC has; it takes two and "
            "three.",
        )
    shared = {ipc: {n: curve[n] for n in common} for ipc, curve in by_ipc.items()}
    winners = [best(curve) for curve in shared.values()]
    listed = ", ".join(f"N = {n} at IPC {ipc}" for ipc, n in zip(shared, winners, strict=True))
    falls = all(a >= b for a, b in pairwise(winners))
    verdict: Verdict = "differs"
    if winners[0] == winners[-1] and falls:
        text = f"It is the same at every IPC here: {listed}."
    elif falls:
        verdict, text = "agrees", f"It falls: {listed}."
    elif winners[-1] < winners[0]:
        verdict, text = "open", f"It falls, but not at every step of IPC: {listed}."
    else:
        text = f"It does not fall: {listed}."
    ties = {ipc: _as_good(curve) for ipc, curve in shared.items()}
    # As good as the best in every line: chance alone may have chosen the winners.
    if set.intersection(*(set(tie) for tie in ties.values())) and verdict != "open":
        verdict = "open"
        text += " But one number of clients is within the noise of the best at every IPC."
    if _alone(shared):
        verdict = "open"
    text += " " + _noise(shared, ties)
    ends = [ipc for ipc, n in zip(shared, winners, strict=True) if n == common[-1]]
    if ends:
        text += (
            f" {common[-1]} is the most clients that were tried, so the best at IPC "
            f"{_listed(ends)} may lie beyond."
        )
    return Finding(claim, verdict, text)


def _as_good(curve: Curve) -> list[int]:
    """List the numbers of clients whose mean is within one standard deviation of the best."""
    top = curve[best(curve)]
    return [n for n, point in curve.items() if top.mean - point.mean <= max(top.std, point.std)]


def _alone(shared: Mapping[int, Curve]) -> bool:
    return any(point.n < 2 for curve in shared.values() for point in curve.values())


def _noise(shared: Mapping[int, Curve], ties: Mapping[int, list[int]]) -> str:
    if _alone(shared):
        return "Some of these means are of one student alone, so the noise is not known."
    close = [f"{_listed(tie)} at IPC {ipc}" for ipc, tie in ties.items() if len(tie) > 1]
    if not close:
        return "Each of them is ahead of the others by more than a standard deviation."
    return f"Within one standard deviation of the best are N = {'; '.join(close)}."


def _below_teachers(by_ipc: Mapping[int, Curve], teachers: Mapping[int, float]) -> Finding:
    claim = "Accuracy stays below the mean accuracy of the clients' teachers"
    cells = [
        (ipc, n, point)
        for ipc, curve in by_ipc.items()
        for n, point in curve.items()
        if n in teachers
    ]
    if not cells:
        return Finding(claim, "open", "Too little to tell: no teacher was tested.")
    above = [(ipc, n, point) for ipc, n, point in cells if point.mean >= teachers[n]]
    gap = min(teachers[n] - point.mean for _, n, point in cells)
    if not above:
        return Finding(
            claim,
            "agrees",
            f"It does in all {_count(len(cells), 'cell')}; the nearest is {gap:.2f} points below.",
        )
    listed = "; ".join(
        f"N = {n} at IPC {ipc}: {point.mean:.2f} against {teachers[n]:.2f}"
        for ipc, n, point in above
    )
    if len(above) <= _EXCEPTIONS * len(cells):
        return Finding(
            claim,
            "agrees",
            f"It does in all but {len(above)} of {len(cells)} cells; in the paper 3 of 185 are "
            f"above. Here: {listed}.",
        )
    close = all(point.mean - point.std < teachers[n] for _, n, point in above)
    text = f"It does not in {len(above)} of {_count(len(cells), 'cell')}: {listed}."
    if any(point.n < 2 for _, _, point in above):
        text += " Some of these are of one student alone, so the noise is not known."
        return Finding(claim, "open", text)
    if close:
        text += " All of these are within one standard deviation of the teachers."
    return Finding(claim, "open" if close else "differs", text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 or what == "IPC" else f"{number} {what}s"


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
