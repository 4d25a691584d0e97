"""Charts: the same bytes for the same numbers, and every name on them as it is."""

import re
from itertools import pairwise

import pytest

from fedistill import charts, figures
from fedistill.charts import Cost, Panel
from fedistill.comparison import Point

CURVES = {"IPC 1": {1: Point(30, 1, 3), 5: Point(20, 2, 3)}, "IPC 10": {1: Point(40, 0, 1)}}


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_same_numbers_give_the_same_bytes():
    first, second = (
        charts.accuracy_over_clients([Panel("title", CURVES, {1: 90.0, 5: 80.0})]) for _ in range(2)
    )
    assert charts.svg(first, "a") == charts.svg(second, "a")
    assert charts.png(first) == charts.png(second)
    assert "<dc:date>" not in charts.svg(first, "a")


def test_accuracy_over_clients_shows_every_line_the_teachers_and_every_number_of_clients():
    figure = charts.accuracy_over_clients([Panel("one", CURVES, {1: 90.0}), Panel("two", CURVES)])
    one, two = figure.axes
    assert [line.get_label() for line in one.lines if line.get_linestyle() == "--"] == [
        "teachers (mean)"
    ]
    legend = [text.get_text() for text in one.get_legend().get_texts()]
    assert legend == ["IPC 1", "IPC 10", "teachers (mean)"]
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["IPC 1", "IPC 10"]
    assert [*one.get_xticks()] == [1, 5]
    drawn = texts(charts.svg(figure, "a"))
    assert {"one", "two", "IPC 10", "clients"} <= set(drawn)


def test_error_bars_are_standard_deviations_and_one_value_has_none():
    figure = charts.accuracy_over_clients([Panel("", CURVES)])
    many, single = (container[2][0].get_segments() for container in figure.axes[0].containers)
    assert [[(x, y) for x, y in segment] for segment in many] == [
        [(1, 29), (1, 31)],
        [(5, 18), (5, 22)],
    ]
    assert [[y for _, y in segment] for segment in single] == [[40, 40]]


def test_lines_differ_in_colour_and_neighbours_in_their_marker():
    for count in (2, 7, 9, 40):
        looks = charts._looks(count)
        assert len({look["color"] for look in looks}) == count
        pairs = pairwise(looks)
        assert all(a["marker"] != b["marker"] for a, b in pairs)


def test_names_are_no_mathematics_and_are_escaped():
    names = {"$a": [(1, 2.0)], "<b>": [(1, 3.0)], "_c": [(1, 4.0)], "$x^2$": [(1, 5.0)]}
    drawn = charts.inline_svg(charts.losses(names, "epoch"), "loss")
    assert {"$a", "&lt;b&gt;", "c", "$x^2$"} <= set(texts(drawn))


def test_two_charts_of_one_page_share_no_id():
    figures = [charts.losses({"a": [(1, 2.0), (2, 1.0)]}, "epoch") for _ in range(2)]
    drawn = [charts.inline_svg(figure, f"chart {n}") for n, figure in enumerate(figures)]
    clips = [set(re.findall(r'<clipPath id="([^"]+)"', svg)) for svg in drawn]
    assert clips[0]
    assert not clips[0] & clips[1]


def test_an_inline_chart_is_an_element_without_the_head_of_a_file():
    drawn = charts.inline_svg(charts.bars([("distilled", Point(50, 1, 2), True)]), "bars")
    assert drawn.startswith("<svg")
    assert drawn.rstrip().endswith("</svg>")
    assert "<metadata" not in drawn
    assert "50.00" in texts(drawn)


def test_accuracy_per_megabyte_names_points_and_writes_plain_numbers():
    few = [(1.5 * n, Point(50 + n, 1, 2), f"{n}") for n in range(1, 6)]
    drawn = texts(charts.svg(charts.accuracy_per_megabyte([Cost("set", few)]), "a"))
    assert {"1", "2", "3", "4", "5", "10"} <= set(drawn)
    many = [(1.5 * n, Point(50, 1, 2), f"N{n}") for n in range(1, 31)]
    drawn = texts(charts.svg(charts.accuracy_per_megabyte([Cost("set", many)]), "a"))
    assert {"N1", "N30"} <= set(drawn)
    assert "N15" not in drawn


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([9.0, 1.0], "log"),
        ([2.0, 1.0], "linear"),
        ([1.0, -9.0], "linear"),
        ([-1.0, -9.0], "linear"),
    ],
)
def test_losses_below_zero_are_drawn_on_a_plain_axis(values: list[float], scale: str):
    curves = {"a": list(enumerate(values))}
    assert charts.losses(curves, "epoch").axes[0].get_yscale() == scale
    drawn = figures.loss_curves(curves, "title", "epoch")
    assert drawn.axes[0].get_yscale() == ("linear" if min(values) < 0 else "log")


def test_many_loss_curves_have_no_key():
    curves = {f"client {n}": [(1, 2.0 + n), (2, 1.0 + n)] for n in range(30)}
    assert charts.losses(curves, "epoch").axes[0].get_legend() is None
