"""Loss curves of a run, drawn from its journal; those of several methods beside each other."""

import math
from collections.abc import Mapping, Sequence

from fedistill import charts
from fedistill.comparison import Row
from fedistill.matching_curves import matching_curves
from fedistill.report.page import Block, Chart, Pictures
from fedistill.report.recorded import Curve, Run


def losses(run: Run) -> list[Block]:
    """Draw the losses of teachers, of images and of students, where the journal has them."""
    drawn = []
    for title, x_label, run_name, name in (
        ("Squeeze: each client's teacher", "epoch", "client/", "teacher/train_loss"),
        ("Recover: each client's first batch of images", "iteration", "client/", "recover/loss"),
    ):
        curves = {f"client {key}": curve for key, curve in run.curves(run_name, name).items()}
        drawn.append(_loss_chart(curves, x_label, title))
    students = []
    for ipc in run.result["sets"]:
        for model in run.result["sets"][ipc]["students"]:
            by_seed = run.curves(f"ipc/{int(ipc):03d}", f"student/{model}/train_loss_s")
            curves = {f"seed {key}": curve for key, curve in by_seed.items()}
            students.append(_loss_chart(curves, "epoch", f"Students {model} on IPC {ipc}"))
    return [Pictures(drawn), Pictures(students, "Losses of the students")]


def matching(rows: Sequence[Row]) -> list[Block]:
    """Draw how closely the sets of several methods are matched, size by size (MIBDC, Fig. 4)."""
    drawn = [
        _loss_chart(curves, "step", f"IPC {ipc}: loss of the matching")
        for ipc, curves in matching_curves(rows).items()
    ]
    return [Pictures(drawn)] if drawn else []


def _loss_chart(curves: Mapping[str, Curve], x_label: str, title: str) -> Chart | None:
    """Draw curves, on a logarithmic axis where no loss is below 0; None if nothing can be shown."""
    below = any(loss < 0 for curve in curves.values() for _, loss in curve)  # as those of `apm`
    can_be_shown = {
        name: [(step, loss) for step, loss in curve if math.isfinite(loss) and (below or loss > 0)]
        for name, curve in curves.items()
    }
    shown = {name: curve for name, curve in can_be_shown.items() if curve}
    if not shown:
        return None
    return Chart(charts.inline_svg(charts.losses(shown, x_label), f"loss-{title}"), title)
