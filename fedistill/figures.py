"""Pictures of a run: the images of a set, the scores, the loss curves.

Drawn with matplotlib's objects, never through pyplot: its global state is not thread-safe.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedistill.embedding import Embedding
from fedistill.images import DataSpec
from fedistill.rows import short, tested_on
from fedistill.sets import SyntheticSet
from fedistill.shares import Curve
from fedistill.student import Score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

_COLUMNS = 10  # images of a class that are shown at most
_ROWS = 20
_BLUE, _ORANGE, _GREY = "#2f6f9f", "#d9822b", "#8a8f98"


def image_sheet(synthetic: SyntheticSet) -> "Figure":
    """Show a set: one row a class, at most 10 images of each and 20 classes."""
    from matplotlib.figure import Figure

    spec = synthetic.spec
    rows = [synthetic.images[synthetic.hard_labels == label] for label in range(spec.num_classes)]
    rows = rows[:_ROWS]
    columns = min(_COLUMNS, max(len(row) for row in rows))
    figure = Figure(figsize=(0.62 * columns + 1.6, 0.62 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(_tiled(rows, columns, spec), interpolation="nearest")
    pitch = spec.size + _gap(spec)
    axes.set_yticks(
        [row * pitch + spec.size / 2 for row in range(len(rows))],
        spec.class_names[: len(rows)],
        fontsize=9,
    )
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    hidden = spec.num_classes - len(rows)
    more = f", first {len(rows)} of {spec.num_classes} classes" if hidden else ""
    axes.set_title(f"{spec.name}: {len(synthetic)} images{more}", fontsize=10)
    return figure


def _gap(spec: DataSpec) -> int:
    """Return the white pixels between two images."""
    return max(1, spec.size // 10)


def _tiled(rows: Sequence[Tensor], columns: int, spec: DataSpec) -> "npt.NDArray[np.uint8]":
    """Put images on a white sheet, one row of the sheet for each tensor; uint8 [H, W, 3]."""
    pitch = spec.size + _gap(spec)
    shape = (3, len(rows) * pitch - _gap(spec), columns * pitch - _gap(spec))
    sheet = torch.full(shape, 255, dtype=torch.uint8)
    for number, row in enumerate(rows):
        for column, image in enumerate(row[:columns]):
            top, left = number * pitch, column * pitch
            sheet[:, top : top + spec.size, left : left + spec.size] = image  # grey fills all three
    return sheet.permute(1, 2, 0).numpy()


def score_bars(
    students: Mapping[str, Score],
    baselines: Mapping[str, Score],
    teacher_top1: Sequence[float],
    title: str,
    split: str = "test",
) -> "Figure":
    """Draw accuracies as bars with the standard deviation over seeds, every seed as a dot."""
    from matplotlib.figure import Figure

    rows = [(f"student {name}", score, _BLUE) for name, score in students.items()]
    rows += [(short(name), score, _ORANGE) for name, score in baselines.items()]
    if teacher_top1:  # those that stay with their clients are not tested
        rows += [("teachers (mean of clients)", Score(list(teacher_top1), []), _GREY)]
    figure = Figure(figsize=(6.4, 0.42 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    for place, (_, score, colour) in enumerate(reversed(rows)):
        axes.barh(place, score.mean, xerr=score.std, color=colour, alpha=0.85, capsize=3)
        axes.plot(score.top1, [place] * len(score.top1), "o", ms=3, color="black", alpha=0.6)
        spread = f" ± {score.std:.2f}" if len(score.top1) > 1 else ""
        axes.text(
            1.02,
            place,
            f"{score.mean:.2f}{spread}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    lowest = min(min(score.top1) for _, score, _ in rows)
    axes.set_xlim(max(0.0, lowest - 0.35 * (100 - lowest) - 2), 100)
    axes.set_xlabel(f"top-1 accuracy on {tested_on(split)}, percent")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def feature_map(embedding: Embedding, class_names: Sequence[str], title: str) -> "Figure":
    """Draw real images as dots and synthetic ones as stars, in the colour of their class."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if len(class_names) <= 10 else "gist_rainbow"]
    points, labels, real = embedding
    spread = 1 if len(class_names) <= 10 else 1 / max(1, len(class_names) - 1)
    for label, name in enumerate(class_names):
        colour = colours(label * spread)
        mine = labels == label
        dots, stars = points[:real][mine[:real]], points[real:][mine[real:]]
        axes.scatter(dots[:, 0], dots[:, 1], s=9, color=colour, alpha=0.6, linewidths=0, label=name)
        axes.scatter(
            stars[:, 0], stars[:, 1],
            s=70, color=colour, marker="*", edgecolors="black", linewidths=0.5,
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    if len(class_names) <= _ROWS:
        axes.legend(
            fontsize=8, frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5)
        )
    return figure


def value_curves(curves: Mapping[str, Curve], title: str, x_label: str, y_label: str) -> "Figure":
    """Draw curves of values that may be negative, one line each."""
    return _lines(curves, title, x_label, y_label, "linear")


def loss_curves(curves: Mapping[str, Curve], title: str, x_label: str) -> "Figure":
    """Draw loss curves, one line each, on a logarithmic axis where no loss is below 0."""
    below = any(loss < 0 for curve in curves.values() for _, loss in curve)  # as those of `apm`
    return _lines(curves, title, x_label, "loss", "linear" if below else "log")


def _lines(
    curves: Mapping[str, Curve], title: str, x_label: str, y_label: str, scale: str
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot([step for step, _ in curve], [loss for _, loss in curve], label=name, lw=1.4)
    axes.set_yscale(scale)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) <= 12:
        axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure
