"""What the saved views say; that MLflow shows them was looked at in a browser."""

import base64
import json
import zlib
from typing import Any

from fedistill import mlflow_views


def state(value: str) -> dict[str, Any]:
    packed = json.loads(value)["state"]
    kind, _, text = packed.partition(";")
    assert kind == "deflate"
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return found


def test_the_lines_of_one_sweep_are_grouped_by_their_name():
    tag, value = mlflow_views.lines_view("s1", "counts", 5)
    assert tag == "mlflow.sharedViewState.accuracy-over-clients-s1"
    assert len(value) < 5000  # what MLflow was seen to take
    found = state(value)
    assert found["searchFilter"] == "tags.role = 'line' and tags.sweep_id = 's1'"
    assert found["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "line"}]
    (chart,) = found["compareRunCharts"]
    assert chart["metricKey"] == mlflow_views.LINE_METRIC
    assert chart["metricSectionId"] == found["compareRunSections"][0]["uuid"]


def test_the_runs_have_a_column_for_every_size():
    _, value = mlflow_views.runs_view("s1", "counts", [1, 50], 5)
    columns = state(value)["selectedColumns"]
    assert "params.`num_clients`" in columns
    assert columns[-2:] == ["metrics.`acc_mean/ipc_001`", "metrics.`acc_mean/ipc_050`"]


def test_a_sweeps_note_replaces_its_own_older_one_alone():
    one, two = mlflow_views.note("s1", "one", "today"), mlflow_views.note("s2", "two", "today")
    assert "viewStateShareKey=accuracy-over-clients-s1" in one
    text = mlflow_views.with_note("by hand", "s1", one)
    text = mlflow_views.with_note(text, "s2", two)
    text = mlflow_views.with_note(text, "s1", mlflow_views.note("s1", "one again", "today"))
    lines = text.splitlines()
    assert lines[0] == "by hand"
    assert [("one again" in line, "**two**" in line) for line in lines[1:]] == [
        (False, True),
        (True, False),
    ]


def test_full_notes_lose_the_oldest_sweep_and_nothing_else():
    """MLflow refuses a longer note, and would get nothing of a sweep any more."""
    text = "by hand"
    for number in range(100):
        key = f"s{number:03}"
        text = mlflow_views.with_note(text, key, mlflow_views.note(key, "counts", "today"))
        assert len(text) <= 5000
    first, second, *_, last = text.splitlines()
    assert first == "by hand"
    assert "sweep s000" not in text
    assert "sweep s099" in last
    assert len(text) + len(second) > 5000


def test_notes_that_are_full_without_a_sweep_stay_as_they_are():
    text = "by hand " * 625
    assert mlflow_views.with_note(text, "s1", mlflow_views.note("s1", "one", "today")) == text
