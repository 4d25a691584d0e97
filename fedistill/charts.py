"""Charts of a report and of a comparison, small enough to be read on a phone.

Drawn with matplotlib's objects, never through pyplot: its global state is not thread-safe.
`svg` and `png` give the same bytes for the same numbers. Colours: Okabe and Ito (2008), which
the colour-blind tell apart; every line has a marker of its own too.
"""

import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedistill.comparison import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
_LIGHTEST = 0.88  # of viridis: its yellow is lost on white
_NAMED = 16  # points of a chart that all get their name
_SHORT = 16  # letters of a key, so that three fit beside each other
_GREY = "#767676"
_TEACHERS = "teachers (mean)"
_KEYS = 12  # lines of a chart that have a key
_WIDTH = 4.6  # inches: at the width of a phone, the letters keep their size
_DPI = 150
_LOOK = {"font.size": 10, "font.family": "sans-serif"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes of accuracy over the number of clients, or over the splits.

    Attributes:
        title: says what the lines have in common; may be empty.
        curves: by label: the accuracy for each number of clients, or place on the axis.
        teachers: mean accuracy of the clients' own models, a dashed line for reference.
        x_label: what is along the axis.
        x_names: what is at its places, if these are no numbers of clients.
    """

    title: str
    curves: Mapping[str, Mapping[int, Point]]
    teachers: Mapping[int, float] = field(default_factory=dict)
    x_label: str = "clients"
    x_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """A series of accuracies and of what they cost: (megabytes, accuracy, name of the point)."""

    label: str
    points: Sequence[tuple[float, Point, str]]
    real: bool = False  # a row beside the distilled ones


def accuracy_over_clients(panels: Sequence[Panel]) -> "Figure":
    """Draw one line for each curve over the clients; error bars are standard deviations."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    keys = max(_keys_height([*panel.curves, _TEACHERS]) for panel in panels)
    figure = _figure(columns * _WIDTH, lines * (3.3 + keys))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for place, panel in zip(axes, panels, strict=False):
        for (label, curve), look in zip(
            panel.curves.items(), _looks(len(panel.curves)), strict=True
        ):
            points = curve.values()
            bars = [point.std if point.n > 1 else 0.0 for point in points]
            place.errorbar(
                [*curve],
                [point.mean for point in points],
                yerr=bars,
                capsize=3,
                lw=1.6,
                ms=5,
                label=_plain(label),
                **look,
            )
        if panel.teachers:
            place.plot(
                [*panel.teachers],
                [*panel.teachers.values()],
                ls="--",
                lw=1.3,
                color=_GREY,
                label=_TEACHERS,
            )
        counts = {*panel.teachers, *(n for curve in panel.curves.values() for n in curve)}
        if panel.x_names:
            place.set_xticks([*panel.x_names], [*panel.x_names.values()])
        elif len(counts) <= 15:
            place.set_xticks(sorted(counts))
        place.set_xlabel(panel.x_label)
        place.set_title(_plain(panel.title), fontsize=10)
        _grid(place)
        _keys_below(place, len(panel.curves) + bool(panel.teachers))
    for place in axes[len(panels) :]:
        place.set_visible(False)
    for number in range(lines):
        axes[number * columns].set_ylabel("top-1 accuracy, percent")
    return figure


def bars(rows: Sequence[tuple[str, Point, bool]]) -> "Figure":
    """Draw accuracies as bars: (name, accuracy, whether it is the distilled set's)."""
    figure = _figure(_WIDTH, 0.44 * len(rows) + 0.7)
    axes = figure.subplots()
    for place, (_, point, ours) in enumerate(reversed(rows)):
        spread = point.std if point.n > 1 else None
        axes.barh(
            place,
            point.mean,
            xerr=spread,
            color=_COLOURS[0] if ours else "#B8BEC6",
            capsize=3,
            height=0.7,
            ecolor="#333333",
        )
        text = f"{point.mean:.2f}"
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(rows)), [_plain(name) for name, _, _ in reversed(rows)])
    axes.set_xlim(0, 100)  # from zero: the length of a bar is its value
    axes.set_xlabel("top-1 accuracy, percent")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def accuracy_per_megabyte(series: Sequence[Cost]) -> "Figure":
    """Draw accuracy over the megabytes that a federation sent, up and down, on a log axis."""
    figure = _figure(_WIDTH, 3.3 + 0.2 * -(-len(series) // 2))
    axes = figure.subplots()
    few = sum(len(cost.points) for cost in series) <= _NAMED
    for cost, look in zip(series, _looks(len(series)), strict=True):
        axes.errorbar(
            [megabytes for megabytes, _, _ in cost.points],
            [point.mean for _, point, _ in cost.points],
            yerr=[point.std if point.n > 1 else 0.0 for _, point, _ in cost.points],
            ls="none" if cost.real else ":",
            lw=1.2,
            ms=6,
            mfc="white" if cost.real else look["color"],
            capsize=3,
            label=_plain(cost.label),
            **look,
        )
        ends = cost.points if few else [cost.points[0], cost.points[-1]]
        for megabytes, point, name in ends:
            axes.annotate(
                _plain(name),
                (megabytes, point.mean),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=9,
                color=look["color"],
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
            )
    sizes = [megabytes for cost in series for megabytes, _, _ in cost.points]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.7, max(sizes) * 2.2)
    _plain_numbers(axes.xaxis, sizes)
    axes.set_xlabel("megabytes sent, up and down")
    axes.set_ylabel("top-1 accuracy, percent")
    _grid(axes)
    _keys_below(axes, len(series), columns=2)
    return figure


def losses(curves: Mapping[str, Sequence[tuple[int, float]]], x_label: str) -> "Figure":
    """Draw loss curves; one colour for all that are too many for a key.

    Args:
        curves: by label: (step, loss), above zero.
        x_label: what the steps are.
    """
    from matplotlib.ticker import MaxNLocator

    few = len(curves) <= _KEYS
    figure = _figure(_WIDTH, 2.9 + (_keys_height(curves) if few else 0))
    axes = figure.subplots()
    for (name, curve), look in zip(curves.items(), _looks(len(curves)), strict=True):
        axes.plot(
            [step for step, _ in curve],
            [loss for _, loss in curve],
            lw=1.4 if few else 0.8,
            alpha=1 if few else 0.5,
            color=look["color"] if few else _COLOURS[0],
            label=_plain(name),
        )
    values = [loss for curve in curves.values() for _, loss in curve]
    if max(values) > 5 * min(values) > 0:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis, values)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel("loss")
    _grid(axes)
    if few and len(curves) > 1:
        _keys_below(axes, len(curves))
    return figure


def svg(figure: "Figure", name: str) -> str:
    """Return a figure as an SVG document.

    Args:
        figure: to draw.
        name: enters the ids of its parts, which must differ between the charts of one page.
    """
    import matplotlib

    # Text stays text: it can be searched and copied, and is drawn in the letters of the page.
    options = {"svg.hashsalt": name, "svg.fonttype": "none", **_LOOK}
    written = io.StringIO()
    with matplotlib.rc_context(options):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def inline_svg(figure: "Figure", name: str) -> str:
    """Return a figure as an element for an HTML page, without the head of a file."""
    drawn = svg(figure, name)
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    return drawn[drawn.index("<svg") :]


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG file."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=_DPI)
    return written.getvalue()


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _looks(count: int) -> list[dict[str, Any]]:
    """Return colour and marker of each line; of many, the colours go from dark to light."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = _COLOURS[:count]
    if count > len(_COLOURS):
        steps = [_LIGHTEST * n / (count - 1) for n in range(count)]
        colours = tuple(to_hex(colormaps["viridis"](step)) for step in steps)
    return [
        {"color": colour, "marker": _MARKERS[n % len(_MARKERS)]} for n, colour in enumerate(colours)
    ]


def _grid(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_numbers(axis: Any, values: Sequence[float]) -> None:
    """Write 1, 2, 5, 10 along a logarithmic axis, no powers; 1, 10 where it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 100 * min(values) else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _keys_below(axes: Any, count: int, columns: int = 3) -> None:
    """Put the key below the axes, where it takes no width; the teachers come last."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: labels[place] == _TEACHERS)
    axes.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=min(columns, count, _key_columns(labels)),
        frameon=False,
        fontsize=9,
        columnspacing=1.2,
        handlelength=1.8,
    )


def _key_columns(labels: Iterable[str]) -> int:
    """Return how many keys fit beside each other: names of options are long."""
    longest = max(map(len, labels), default=0)
    return 3 if longest <= _SHORT else 2 if longest <= 2 * _SHORT else 1


def _keys_height(labels: Collection[str]) -> float:
    """Return the inches that the keys of some lines take below the axes."""
    return 0.2 * -(-len(labels) // _key_columns(labels))


def _plain(text: str) -> str:
    """Keep a text from being read as mathematics, or as a line that has no key."""
    return text.replace("$", r"\$").removeprefix("_")
