"""What a sweep has found: its rows, its curves, and the files of the comparison."""

import csv
import io
import json

import made_up
import pytest

from fedistill import comparison, comparison_files
from fedistill.comparison import Facet, Line
from fedistill.errors import OutputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_up.sweep_folder(
        tmp_path_factory.mktemp("sweep") / "s",
        clients=(1, 2),
        alphas=(None, 0.1),
        failed={(2, 1): "no memory"},
    )


@pytest.fixture(scope="module")
def rows(folder):
    return comparison.rows(folder)


def test_a_row_is_a_set_of_a_federation_that_is_done(rows):
    assert len(rows) == 2 * 3 * 2
    first = rows[0]
    assert (first.line, first.clients, first.seed) == (Line("sre2l", None, 1), 1, 0)
    assert first.top1 == tuple(made_up.made_up(1, 1, 0))
    assert first.teachers == 88.125


def test_curves_take_the_students_of_all_seeds_alike(rows):
    curves = comparison.curves(rows)
    assert [*curves] == [Line("sre2l", alpha, ipc) for alpha in (None, 0.1) for ipc in (1, 10)]
    point = curves[Line("sre2l", None, 10)][1]
    values = made_up.made_up(10, 1, 0) + made_up.made_up(10, 1, 1)
    assert point.mean == pytest.approx(sum(values) / 4)
    assert point.std == pytest.approx(
        (sum((value - point.mean) ** 2 for value in values) / 3) ** 0.5
    )
    assert (point.n, curves[Line("sre2l", None, 10)][2].n) == (4, 2)


def test_labels_and_facets_name_what_differs(rows):
    curves = comparison.curves(rows)
    assert comparison.labels(curves)[Line("sre2l", 0.1, 10)] == "IPC 10, alpha 0.1"
    assert comparison.facets(curves) == {
        Facet("sre2l", None): "iid",
        Facet("sre2l", 0.1): "alpha 0.1",
    }
    alone = [line for line in curves if line.alpha is None]
    assert comparison.facets(alone) == {Facet("sre2l", None): ""}
    lines = [Line("lic", None, 1), Line("sre2l", 0.1, 1)]
    assert [*comparison.facets(lines).values()] == ["lic, iid", "sre2l, alpha 0.1"]


def test_a_federation_counts_once_among_the_teachers_however_many_sets_it_made(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1,), ipc=(1, 5, 10), seeds=(0, 1))
    (path,) = folder.glob("runs/*seed-1/result.json")
    result = json.loads(path.read_text())
    result["teachers"]["top1_mean"] = 80.125
    result["sets"] = {"1": result["sets"]["1"]}
    path.write_text(json.dumps(result))
    found = comparison.teachers(comparison.rows(folder))
    assert found == {Facet("sre2l", None): {1: pytest.approx((88.125 + 80.125) / 2)}}


def test_teachers_that_were_not_tested_are_left_out(tmp_path):
    rows = comparison.rows(made_up.sweep_folder(tmp_path / "s", teachers=None))
    assert comparison.teachers(rows) == {}


def test_a_folder_without_a_sweep_and_a_damaged_result_are_told(tmp_path):
    with pytest.raises(OutputError, match=r"holds no sweep\.json"):
        comparison.rows(tmp_path)
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1,), seeds=(0,))
    (path,) = folder.glob("runs/*/result.json")
    path.write_text('{"half":')
    with pytest.raises(OutputError, match="cannot be read"):
        comparison.rows(folder)


def test_the_files_of_a_comparison(folder):
    paths = comparison_files.write(folder)
    assert [path.relative_to(folder).as_posix() for path in paths] == [
        "comparison/accuracy_vs_clients.png",
        "comparison/accuracy_vs_clients.svg",
        "comparison/table.csv",
        "comparison/table.json",
        "comparison/table.html",
    ]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in paths[0].parent.iterdir()} == {path.name for path in paths}


def test_a_line_of_the_table_for_each_cell(folder):
    comparison_files.write(folder)
    text = (folder / "comparison" / "table.csv").read_text()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 8
    assert [*lines[0]] == [
        "distiller", "alpha", "clients", "ipc", "seeds", "mean", "std", "n", "teachers",
        "bytes_up", "bytes_down",
        "ensemble_mean", "ensemble_std", "ensemble_n", "ensemble_bytes_up", "ensemble_bytes_down",
        "random_mean", "random_std", "random_n", "random_bytes_up", "random_bytes_down",
    ]  # fmt: skip
    cell = next(it for it in lines if (it["alpha"], it["clients"], it["ipc"]) == ("0.1", "2", "10"))
    assert (cell["mean"], cell["std"], cell["n"], cell["seeds"]) == ("13.35", "0.354", "2", "1")
    assert (cell["random_n"], cell["ensemble_n"]) == ("2", "1")
    assert (cell["random_mean"], cell["teachers"]) == ("10.5", "88.125")
    assert (cell["bytes_up"], cell["bytes_down"]) == ("2000", "200")


def test_every_row_of_the_table_has_its_own_bytes(tmp_path):
    beside = {
        "random": {**made_up.scores(1.0), "bytes": {"up": 7, "down": 3}},
        "ensemble": made_up.scores(2.0),
    }
    folder = made_up.sweep_folder(
        tmp_path / "sweep",
        clients=[2],
        seeds=[0],
        baselines=beside,
        traffic=lambda ipc: {"up": 50 * ipc, "down": ipc},
    )
    comparison_files.write(folder)
    text = (folder / "comparison" / "table.csv").read_text()
    lines = {it["ipc"]: it for it in csv.DictReader(io.StringIO(text))}
    assert {ipc: (it["bytes_up"], it["bytes_down"]) for ipc, it in lines.items()} == {
        "1": ("50", "1"),
        "10": ("500", "10"),
    }
    assert (lines["10"]["random_bytes_up"], lines["10"]["random_bytes_down"]) == ("7", "3")
    assert lines["10"]["ensemble_bytes_up"] == ""


def test_the_json_table_is_what_pandas_reads_as_split(folder):
    import pandas

    comparison_files.write(folder)
    path = folder / "comparison" / "table.json"
    assert set(json.loads(path.read_text())) == {"columns", "data"}
    frame = pandas.read_json(path, orient="split")
    assert [*frame["mean"]][:2] == pytest.approx([12.31, 13.26])
    assert frame["alpha"].isna().sum() == 4


def test_the_same_results_give_the_same_bytes_whenever_and_however_they_came(tmp_path):
    """Killed and resumed: other times, another order of the runs, another folder."""
    first = made_up.sweep_folder(tmp_path / "a")
    second = made_up.sweep_folder(
        tmp_path / "b", seconds={"squeeze": 99.0, "recover": 1.0, "total": 7.0}
    )
    state = json.loads((second / "sweep.json").read_text())
    state |= {"seconds": 9999.0, "created": "2027-01-01 00:00:00", "command": ["other"]}
    state["runs"].reverse()
    (second / "sweep.json").write_text(json.dumps(state))
    pairs = zip(comparison_files.write(first), comparison_files.write(second), strict=True)
    for one, other in pairs:
        assert one.read_bytes() == other.read_bytes(), one.name
    again = [path.read_bytes() for path in comparison_files.write(first)]
    assert again == [path.read_bytes() for path in comparison_files.write(second)]


def test_names_are_escaped_in_the_html_table(tmp_path):
    folder = made_up.sweep_folder(
        tmp_path / "s",
        clients=(1,),
        seeds=(0,),
        name="<script>alert(1)</script>",
        baselines={"<b>": made_up.scores(1.0)},
    )
    comparison_files.write(folder)
    page = (folder / "comparison" / "table.html").read_text()
    assert "<script" not in page
    assert "&lt;b&gt;_mean" in page


def test_a_sweep_without_a_result_has_no_comparison(tmp_path):
    folder = made_up.sweep_folder(
        tmp_path / "s", clients=(1,), seeds=(0,), failed={(1, 0): "no memory"}
    )
    assert comparison_files.write(folder) == []
    assert not (folder / "comparison").exists()


def test_bytes_that_were_not_counted_are_empty(tmp_path):
    folder = made_up.sweep_folder(tmp_path / "s", clients=(1,), seeds=(0,), bytes={})
    comparison_files.write(folder)
    (line,) = [*csv.DictReader((folder / "comparison" / "table.csv").open())][:1]
    assert (line["bytes_up"], line["bytes_down"]) == ("", "")
