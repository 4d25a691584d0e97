"""Saved views of MLflow's pages: "accuracy over clients, one line for each IPC" at one click.

What "Save as new view" writes (MLflow 3.15 and later) is a tag of the experiment, so that a
program can write it too. The format is MLflow's own and not documented: the figure and the table
that a sweep logs beside it show the same without it.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

LINE_METRIC = "acc_vs_clients"
LINE_TAG = "line"  # of a nested run: which line of the comparison it is
NOTE_TAG = "mlflow.note.content"
EXPERIMENT_ID = "{experiment_id}"  # stands for it in a note, until a store has given one
_LONGEST_NOTE = 5000  # letters that MLflow 3.15 takes (mlflow/utils/validation.py); 3.17: 20,000
_MARK = "<!-- sweep "
_VIEW_TAG = "mlflow.sharedViewState."
_SECTION = "comparison-of-client-counts"


def lines_view(sweep_id: str, name: str, now_ms: int) -> tuple[str, str]:
    """Make the view of a sweep's lines.

    Args:
        sweep_id: of the sweep; its lines are nested runs with this tag.
        name: in the menu of views.
        now_ms: when it was made, in milliseconds since 1970.

    Returns:
        Name and value of the experiment's tag.
    """
    state = _state(f"tags.role = 'line' and tags.sweep_id = '{sweep_id}'")
    state["compareRunSections"] = [_section()]
    state["compareRunCharts"] = [_line_chart()]
    state["groupBy"] = {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": LINE_TAG}],
    }
    return _view(_lines_key(sweep_id), f"{name}: accuracy over clients", state, now_ms)


def runs_view(sweep_id: str, name: str, sizes: Sequence[int], now_ms: int) -> tuple[str, str]:
    """Make the view of a sweep's federations: a table sorted by the number of clients.

    Args:
        sweep_id: of the sweep.
        name: in the menu of views.
        sizes: the IPC of the sweep: a column of accuracies for each.
        now_ms: when it was made, in milliseconds since 1970.

    Returns:
        Name and value of the experiment's tag.
    """
    state = _state(f"tags.role = 'experiment' and tags.sweep_id = '{sweep_id}'")
    params = [f"params.`{key}`" for key in ("num_clients", "method", "partition.alpha", "seed")]
    metrics = [f"metrics.`acc_mean/ipc_{ipc:03d}`" for ipc in sizes]
    state["selectedColumns"] = ["tags.`variant`", *params, *metrics]
    return _view(_runs_key(sweep_id), f"{name}: runs", state, now_ms)


def note(sweep_id: str, name: str, created: str) -> str:
    """Write the line with links to both views, for the top of the experiment's page.

    Links are relative, so that they work wherever the store is shown.
    """
    lines = _link(_lines_key(sweep_id), "&compareRunsMode=CHART")
    runs = _link(_runs_key(sweep_id))
    return f"- **{name}** ({created}): [accuracy over clients]({lines}), [runs]({runs})"


def lines_page(sweep_id: str, experiment_id: str) -> str:
    """Return the address of the view of the lines, behind that of the server."""
    link = _link(_lines_key(sweep_id), "&compareRunsMode=CHART")
    return f"/{link.replace(EXPERIMENT_ID, experiment_id)}"


def with_note(text: str, sweep_id: str, line: str) -> str:
    """Put a sweep's line into the notes of an experiment, in the place of an older one.

    Where the notes would be longer than MLflow takes, the lines of the oldest sweeps leave them;
    what else stands there stays, and if that leaves no room, so do the notes.
    """
    mark = f"{_MARK}{sweep_id} -->"
    lines = [old for old in text.splitlines() if mark not in old] + [f"{line} {mark}"]
    while len("\n".join(lines)) > _LONGEST_NOTE:
        oldest = next(place for place, old in enumerate(lines) if _MARK in old)
        if oldest == len(lines) - 1:
            return text
        del lines[oldest]
    return "\n".join(lines)


def _lines_key(sweep_id: str) -> str:
    return f"accuracy-over-clients-{sweep_id}"


def _runs_key(sweep_id: str) -> str:
    return f"runs-{sweep_id}"


def _link(key: str, mode: str = "") -> str:
    # Without workflowType an experiment opens on the empty page for language models.
    page = f"#/experiments/{EXPERIMENT_ID}/runs?workflowType=machine_learning"
    return f"{page}{mode}&viewStateShareKey={key}"


def _view(key: str, name: str, state: Mapping[str, Any], now_ms: int) -> tuple[str, str]:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": name, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return f"{_VIEW_TAG}{key}", json.dumps(view)


def _state(search: str) -> dict[str, Any]:
    """Return what every view says: which runs, in which order, without any chart of its own."""
    return {
        "searchFilter": search,
        # By name: a view shows 100 runs, and by start time nested runs would count too.
        "orderByKey": "attributes.run_name",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": [],
        "compareRunSections": [],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupsExpanded": {},
        "groupBy": None,
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _section() -> dict[str, Any]:
    return {
        "uuid": _SECTION,
        "name": "Comparison of client counts",
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": 1,
        "cardHeight": 520,
    }


def _line_chart() -> dict[str, Any]:
    return {
        "uuid": "accuracy-over-clients",
        "type": "LINE",
        "metricSectionId": _SECTION,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
        "metricKey": LINE_METRIC,
        "selectedMetricKeys": [LINE_METRIC],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
    }
