"""What the commands print: tables for a terminal, drawn with rich."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedistill import comparison, display, mlflow_views, rows, tracking
from fedistill.report.page import size
from fedistill.sets import SyntheticSet
from fedistill.student import Score
from fedistill.sweep import Plan

FLOWER_START_S = 25  # of a simulation, on two cores


def print_result(result: Mapping[str, Any], folder: Path) -> None:
    """Print the scores of a run, its costs, and where everything is."""
    console = Console()
    table = Table(title=f"{result['name']}: {result['clients']} clients", title_justify="left")
    for name in ("IPC", "trained on", "model", "top-1 %", "std", "seeds", "MB up"):
        table.add_column(name, justify="left" if name in ("trained on", "model") else "right")
    for ipc, found in result["sets"].items():
        for model, score in found["students"].items():
            what, sent = "[bold]distilled set[/bold]", _mbytes(found.get("traffic"))
            table.add_row(ipc, what, model, *_numbers(score), sent, style="bold")
        for name, score in found["baselines"].items():
            sent = _mbytes(score.get("bytes"))
            table.add_row(ipc, rows.title(name), "", *_numbers(score), sent)
    teachers = [value for value in result["teachers"]["top1"] if value is not None]
    if teachers:
        table.add_row(
            "", "a client's own data (teachers)", "", *_numbers(Score(teachers, []).as_dict())
        )
    console.print(table)
    if any("ranking" in found for found in result["sets"].values()):
        console.print(_ranking(result["sets"]))
    seconds = ", ".join(f"{k} {v:.0f}" for k, v in result["seconds"].items() if v)
    up, down = (size(result["bytes"][way]) for way in ("up", "down"))
    console.print(f"seconds: {seconds}\nbytes: {up} up, {down} down", highlight=False)
    kept = {stage: len(found) for stage, found in result.get("from_store", {}).items() if found}
    if kept:
        stages = ", ".join(f"{stage} of {count} client(s)" for stage, count in kept.items())
        console.print(f"from the store, with the seconds that making it took: {stages}")
    if result["absent_clients"]:
        console.print(f"absent clients: {result['absent_clients']}", style="yellow")
    if result.get("absent_labellers"):
        console.print(f"clients that did not label: {result['absent_labellers']}", style="yellow")
    if result.get("evaluated_on") == "validation":
        console.print("tested on held-out training images, not on the test split")
    if result.get("evaluated_on") == "clients":
        console.print("tested by the devices, on images that they keep for that")
    console.print(f"results: {folder}", highlight=False, soft_wrap=True)
    mlflow = result["mlflow"]
    if mlflow["run_id"]:
        line = tracking.ui_command(mlflow["tracking_uri"], mlflow["experiment_id"])
        console.print(f"MLflow:  {line}", highlight=False, soft_wrap=True, markup=False)
    else:
        console.print(f"MLflow holds nothing of this run yet: fedistill track {folder}")


def _ranking(sets: Mapping[str, Any]) -> Table:
    """Draw DD-Ranking's scores, 0 to 1, and the differences in points that they are made of."""
    table = Table(title="DD-Ranking", title_justify="left")
    names = ("IPC", "label-robust score", "augmentation-robust score", "HLR", "IOR")
    for name in names:
        table.add_column(name, justify="right")
    for ipc, found in sets.items():
        if "ranking" in found:
            scores = found["ranking"]
            table.add_row(
                ipc,
                *(f"{scores[name]:.3f}" for name in ("lrs", "ars")),
                *(f"{scores[name]:.2f}" for name in ("hlr", "ior")),
            )
    return table


def print_scores(scores: Mapping[str, Score], folder: Path) -> None:
    """Print the accuracy of students trained on a set."""
    table = Table(title=str(folder), title_justify="left")
    for name in ("model", "top-1 %", "std", "seeds"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, score in scores.items():
        table.add_row(name, *_numbers(score.as_dict()))
    Console().print(table)


def _score(point: comparison.Point) -> str:
    """Write an accuracy; one value alone has no deviation."""
    return f"{point.mean:.2f} ± {point.std:.2f}" if point.n > 1 else f"{point.mean:.2f}"


def print_sweep(state: Mapping[str, Any], folder: Path) -> None:
    """Print accuracy over the number of clients for each line of a sweep, the longer way down."""
    console = Console()
    found = comparison.rows(folder)
    curves = comparison.curves(found)
    labels = comparison.labels(comparison.lines(state))
    table = Table(title=f"{state['name']}: top-1 % over clients", title_justify="left")
    texts = {
        labels[line]: {n: _score(it) for n, it in curve.items()} for line, curve in curves.items()
    }
    facets = comparison.facets(curves)
    for facet, means in comparison.teachers(found).items():
        name = f"teachers, {facets[facet]}".removesuffix(", ")
        texts[name] = {n: f"{mean:.2f}" for n, mean in means.items()}
    numbers = state["axes"]["clients"]
    if len(texts) > len(numbers):
        table.add_column(overflow="fold")
        for n in numbers:
            table.add_column("1 client" if n == 1 else f"{n} clients", justify="right")
        for name, cells in texts.items():
            table.add_row(name, *[cells.get(n, "") for n in numbers])
    else:
        table.add_column("clients", justify="right")
        for name in texts:
            table.add_column(name, justify="right", overflow="fold")
        for n in numbers:
            table.add_row(str(n), *[cells.get(n, "") for cells in texts.values()])
    console.print(table)
    done = [run for run in state["runs"] if run["status"] == "done"]
    took = display.format_seconds(state["seconds"])
    console.print(f"{len(done)} of {len(state['runs'])} federations are done, in {took}")
    console.print(f"results: {folder}", highlight=False, soft_wrap=True)
    stored = tracking.stored_run(folder)
    if stored is not None:
        page = mlflow_views.lines_page(state["sweep_id"], stored.experiment_id)
        command = tracking.ui_command(stored.tracking_uri, page=page)
        console.print(f"MLflow:  {command}", highlight=False, soft_wrap=True, markup=False)


def print_plans(plans: Sequence[Plan], seconds: Sequence[float]) -> None:
    """Print what a sweep would do."""
    table = Table(title="What is left to do", title_justify="left")
    for name in ("federation", "IPC", "state", "in the store", "about"):
        table.add_column(name, justify="right" if name == "about" else "left", overflow="fold")
    for it, took in zip(plans, seconds, strict=True):
        config = it.federation.config
        number = config.partition.clients
        kept = f"{it.teachers} of {number} teachers, {it.shares} shares" if it.teachers else ""
        table.add_row(
            it.federation.folder,
            ", ".join(map(str, config.distill.ipc)),
            it.status,
            kept,
            display.format_seconds(took) if took else "",
        )
    Console().print(table)
    left = sum(it.status != "done" for it in plans)
    start = display.format_seconds(sum(seconds) + (FLOWER_START_S if left else 0))
    print(
        f"{left} of {len(plans)} federations are left: about {start}, the start of Flower included"
    )


def print_set(synthetic: SyntheticSet, folder: Path) -> None:
    """Print what a distilled set is and where it comes from."""
    spec, labels = synthetic.spec, synthetic.soft_labels
    rows = {
        "set": str(folder),
        "images": f"{len(synthetic)} of {spec.channels} x {spec.size} x {spec.size}",
        "classes": ", ".join(spec.class_names[:20]) + (" ..." if spec.num_classes > 20 else ""),
        "soft labels": f"{len(labels)} views of every image" if labels else "none",
        "made by": f"{len(synthetic.clients.unique())} clients",
        "SHA-256": synthetic.sha256,
    }
    recipe = synthetic.card.get("recipe", {}).get("distill", {})
    if recipe:
        steps = f" ({recipe['iterations']} iterations)" if "iterations" in recipe else ""
        rows["method"] = f"{recipe.get('name')}{steps}"
    for name, score in synthetic.card.get("score", {}).items():
        spread = f" +- {score['top1_std']}" if score["n"] > 1 else ""
        rows[f"score, {name}"] = f"{score['top1_mean']}{spread} (n={score['n']})"
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a hash with its end cut off is no use
    for key, value in rows.items():
        table.add_row(key, value)
    Console().print(table)


def print_bench(measured: Mapping[str, Any]) -> None:
    """Print the throughput of every stage."""
    table = Table(title=measured["hardware"]["cpu"], title_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("per second")
    for name in ("GFLOP/s", "of peak", "F", "F+B", "GFLOP"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, row in measured["stages"].items():
        cost = row["cost"] or {}
        table.add_row(
            stage,
            f"{row['per_second']:,.0f} {row['unit']}",
            f"{row['gflops']:,.1f}",
            f"{100 * row['share_of_peak']:.0f} %",
            *(f"{cost[name]:,.0f}" for name in ("forward", "forward_backward") if cost),
            *([f"{cost['gflop']:,.1f}"] if cost else []),
        )
    console = Console()
    console.print(table)
    console.print(
        f"peak: {measured['peak_gflops']:,.0f} GFLOP/s, the best of matrix products in "
        f"{measured['precision']} with {measured['threads']} threads\nF, F+B, GFLOP: what an image "
        "costs with the method's own iterations: passes through the teacher, forward only and "
        "backward to the pixels too, and all operations",
        highlight=False,
    )


def _numbers(score: Mapping[str, Any]) -> tuple[str, str, str]:
    std = f"{score['top1_std']:.2f}" if score["n"] > 1 else "-"
    return f"{score['top1_mean']:.2f}", std, str(score["n"])


def _mbytes(sent: Mapping[str, int] | None) -> str:
    return f"{sent['up'] / 1e6:.3g}" if sent else ""
