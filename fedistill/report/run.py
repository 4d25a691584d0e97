"""The page of a run: what was done, what came of it, what it cost, and how to do it again.

Every number comes from the run's own files; what an older run did not write is left out.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedistill import __version__, charts, comparison, published, results
from fedistill.comparison import Point
from fedistill.config_students import ENSEMBLES
from fedistill.journal import JOURNAL
from fedistill.report.cautions import alone, warnings
from fedistill.report.costs import clients, costs
from fedistill.report.curves import losses
from fedistill.report.one_shot import beside_one_shot
from fedistill.report.page import (
    Block,
    Chart,
    Code,
    Facts,
    Headline,
    Links,
    Page,
    Pictures,
    Section,
    Table,
    Text,
    Warnings,
    score,
)
from fedistill.report.paper import beside_paper
from fedistill.report.recorded import Run, point
from fedistill.rows import short, tested_on

_REDRAWN = ("scores_", "squeeze_loss", "recover_loss")  # figures that the page draws itself


def build(folder: Path, output: Path) -> Page:
    """Put the page of a run together.

    Args:
        folder: of the run.
        output: where the page will be; its links start there.

    Raises:
        OutputError: a file of the run is missing or damaged.
    """
    run = Run.read(folder)
    result = run.result
    count = result["clients"]
    method, alpha = run.config["distill"]["name"], run.config["partition"].get("alpha")
    rows = comparison.of_federation(folder, result, method, alpha)
    return Page(
        title=f"{result['name']}: {count} client{'s' * (count != 1)}",
        subtitle=f"Federated dataset distillation with {method} on {run.data_name}, {run.date}",
        version=__version__,
        sections=[
            Section("Result", _accuracy(run)),
            Section("Beside the paper's table", beside_paper(rows)),
            Section("Beside one-shot methods", beside_one_shot(rows)),
            Section("What was run", [Facts(facts(run))]),
            Section("Synthetic images", [sheets(run)]),
            Section("Clients", clients(run)),
            Section("Costs", costs(run)),
            Section("Loss", losses(run)),
            Section("DD-Ranking", _ranking(run)),
            Section("Other pictures", _other_pictures(run)),
            Section("Use the sets", _sets(run, output)),
            Section("Do it again", again(run.config_yaml, "fedistill run config.yaml", run.tags)),
        ],
    )


def _accuracy(run: Run) -> list[Block]:
    return [_headline(run), Warnings(warnings(run) + _beside_numbers(run)), *_scores(run)]


def _headline(run: Run) -> Headline:
    cards = []
    for ipc, found in run.result["sets"].items():
        random = found["baselines"].get("random")
        for number, (model, scores) in enumerate(found["students"].items()):
            beside = f"top-1 in percent, n={scores['n']}"
            if random and number == 0:
                gain = scores["top1_mean"] - random["top1_mean"]
                beside += f"; {gain:+.2f} points against random real images"
            cards.append((f"IPC {ipc}, {model}", score(*point(scores)), beside))
    return Headline(cards)


def _beside_numbers(run: Run) -> list[str]:
    """List what matters on the page of this run alone."""
    students = [found["students"].values() for found in run.result["sets"].values()]
    return alone(scores["n"] for rows in students for scores in rows) + _kept(run)


def _kept(run: Run) -> list[str]:
    """Say what was not made but read: its seconds are those of another day."""
    kept = {stage: held for stage, held in run.result.get("from_store", {}).items() if held}
    stages = ", ".join(f"{stage} of {len(held)} client(s)" for stage, held in kept.items())
    return [f"From the artefact store, with the time that making it took: {stages}."] * bool(kept)


def _scores(run: Run) -> list[Block]:
    head = ["IPC", "trained on", "top-1 %", "n", "network"]
    strong, pictures = set(), []
    rows: list[list[str]] = []
    for ipc, found in run.result["sets"].items():
        bars = []
        for model, scores in found["students"].items():
            strong.add((len(rows), 2))
            rows.append([ipc, "distilled set", *_numbers(scores), model])
            bars.append((f"distilled, {model}", point(scores), True))
        first = next(iter(found["students"]))
        for name, scores in found["baselines"].items():
            network = "teachers" if name in ENSEMBLES else first
            if name == "weight_average":
                network = run.teacher_networks[0]["name"]
            if name.startswith("fedavg_"):
                network = run.own_networks[0]["name"]
            rows.append([ipc, short(name), *_numbers(scores), network])
            bars.append((short(name), point(scores), False))
        teachers = run.result["teachers"]["top1_mean"]
        if teachers is not None:
            bars.append(("teachers (mean)", Point(teachers, 0.0, 1), False))
        drawn = charts.inline_svg(charts.bars(bars), f"bars-{ipc}")
        pictures.append(Chart(drawn, f"IPC {ipc}. Error bars: standard deviation over seeds."))
    split = run.result.get("evaluated_on", "test")
    caption = (
        f"Top-1 accuracy in percent on {tested_on(split)}, last epoch; n students "
        "with fresh seeds. Real images are as many as the set has, labelled in the same way; hard "
        "labels: the same images without soft ones; an ensemble is all teachers together, without "
        "a set."
    )
    table = Table(head, rows, frozenset(strong), names=2, caption=caption)
    return [table, Pictures(pictures)]


def _numbers(scores: Mapping[str, Any]) -> list[str]:
    return [score(*point(scores)), str(scores["n"])]


def facts(run: Run) -> list[tuple[str, str]]:
    """Say what was run, on what, and with what."""
    config, result = run.config, run.result
    distill, labels = config["distill"], config["relabel"]
    hardware = result["hardware"]
    commit = run.tags.get("mlflow.source.git.commit")
    seeds = config["student"]["seeds"]
    return [
        ("data", ", ".join([run.data_name, *published.changed_data(config)])),
        ("clients", str(result["clients"])),
        ("split", run.split),
        ("method", distill["name"]),
        *([("iterations", str(distill["iterations"]))] if "iterations" in distill else []),
        ("labels", ", ".join([labels["name"], f"{labels['views']} views"])),
        ("IPC", ", ".join(map(str, distill["ipc"]))),
        (
            "teachers",
            f"{', '.join(_network(model) for model in run.teacher_networks)}; "
            f"{config['teacher']['epochs']} epochs",
        ),
        (
            "students",
            f"{', '.join(_network(model) for model in config['student']['models'])}; protocol "
            f"{config['student']['protocol']}, {_epochs(config['student']['epochs'])} epochs, "
            f"{seeds} seed{'' if seeds == 1 else 's'}",
        ),
        ("seed", str(result["seed"])),
        ("started", run.date),
        ("hardware", f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores"),
        ("versions", ", ".join(f"{k} {v}" for k, v in result["versions"].items())),
        ("commit", commit or "not recorded"),
        ("config SHA-256", result["config_sha256"]),
        ("MLflow run", result.get("mlflow", {}).get("run_id") or "not delivered"),
    ]


def _epochs(epochs: int | Mapping[int, int]) -> str:
    """Write the epochs of students, which may be others for each IPC."""
    if not isinstance(epochs, Mapping):
        return str(epochs)
    return ", ".join(f"{number} (IPC {ipc})" for ipc, number in epochs.items())


def _network(model: Mapping[str, Any] | str) -> str:
    if isinstance(model, str):
        return model
    options = ", ".join(f"{k} {v}" for k, v in model.items() if k != "name" and v is not None)
    return f"{model['name']} ({options})" if options else str(model["name"])


def sheets(run: Run, prefix: str = "") -> Pictures:
    """Show the images of every set of a run."""
    return Pictures(
        [run.image(f"set_ipc-{ipc}", f"{prefix}IPC {ipc}") for ipc in run.result["sets"]]
    )


def _ranking(run: Run) -> list[Block]:
    found = {ipc: it["ranking"] for ipc, it in run.result["sets"].items() if "ranking" in it}
    if not found:
        return []
    rows = [
        [
            ipc,
            *(f"{it[name]:.3f}" for name in ("lrs", "ars")),
            *(f"{it[name]:.2f}" for name in ("hlr", "ior")),
        ]
        for ipc, it in found.items()
    ]
    names = {name: None for it in found.values() for name in it["rows"]}
    made_of = [
        [ipc, *(score(*point(it["rows"][name])) if name in it["rows"] else "-" for name in names)]
        for ipc, it in found.items()
    ]
    return [
        Table(
            ["IPC", "label-robust score", "augmentation-robust score", "HLR", "IOR"],
            rows,
            caption="Scores from 0 to 1, more is better. HLR: points lost with hard labels against "
            "all real data, less is better. IOR: points won over random real images, more is "
            "better.",
        ),
        Table(
            ["IPC", *(name.replace("_", " ") for name in names)],
            made_of,
            caption="The accuracies that the scores are made of, in percent.",
        ),
    ]


def _other_pictures(run: Run) -> list[Block]:
    sets = [f"set_ipc-{ipc}" for ipc in run.result["sets"]]
    drawn = any(event["event"] == "curve" for event in run.events)
    hidden = _REDRAWN if drawn else _REDRAWN[:1]
    paths = sorted((run.folder / "figures").glob("*.png"))
    names = [
        path.stem
        for path in paths
        if path.stem not in (*sets, "partition") and not path.stem.startswith(hidden)
    ]
    pictures = [run.image(name, _caption(name)) for name in names]
    return [Pictures(pictures)]


def _caption(name: str) -> str:
    if name.startswith("features_ipc-"):
        ipc = name.removeprefix("features_ipc-")
        return (
            f"IPC {ipc}: features of real images (dots) and synthetic ones (stars), seen by a "
            "student, t-SNE"
        )
    return name.replace("_", " ")


def _sets(run: Run, output: Path) -> list[Block]:
    links = [
        link(run.folder / "sets" / f"ipc-{ipc}", output, f"IPC {ipc}: SHA-256 {it['sha256']}")
        for ipc, it in run.result["sets"].items()
    ]
    files = [
        link(run.folder / name, output, what)
        for name, what in (
            (results.RESULT, "every number"),
            (results.CONFIG, "the config"),
            ("partition.json", "who holds what"),
            (JOURNAL, "every event"),
        )
        if (run.folder / name).is_file()
    ]
    _, place, _ = links[0]
    code = (
        "from fedistill.sets import SyntheticSet\n\n"
        f"distilled = SyntheticSet.load({place!r})\n"
        "images, labels = distilled.images, distilled.hard_labels\n"
    )
    return [
        Links([*links, *files]),
        Code(code, "Load a set, from the folder of this page:"),
        Code(
            f"fedistill train {shlex.quote(place)} --data {shlex.quote(run.data_name)}\n",
            "Train fresh students on it:",
        ),
    ]


def link(path: Path, output: Path, what: str) -> tuple[str, str, str]:
    """Return the address of a file relative to the page, the same as text, and what it is."""
    relative = Path(os.path.relpath(path.absolute(), output.absolute().parent)).as_posix()
    return quote(f"./{relative}"), relative, what


def again(config_yaml: str, command: str, tags: Mapping[str, str]) -> list[Block]:
    """Say how to do the same again.

    Args:
        config_yaml: the whole config.
        command: that takes it; several have a line each.
        tags: of the journal, that may know the commit.
    """
    commit = tags.get("mlflow.source.git.commit")
    checkout = f"git checkout {commit}\n" if commit else ""
    return [
        Text(
            "The same config on the same machine gives the same sets, byte for byte; another "
            "processor or another torch rounds differently."
        ),
        Code(checkout + "".join(f"uv run {line}\n" for line in command.splitlines())),
        Code(config_yaml, "config.yaml, in full", folded=True),
    ]
