"""What MLflow gets of a sweep beside its federations: one line for each IPC, figure, table.

The sweep is a run of its own, tied to those of its federations by a tag. MLflow's charts collapse
nested runs and load a hundred of them, so that "accuracy over clients" is not left to the runs of
the federations: each line is one nested run of the sweep, with the number of clients as the step.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from fedistill import comparison, comparison_files, config_file, mlflow_colours, mlflow_views
from fedistill.config import Config
from fedistill.journal import Journal

ROLE = "sweep"


class SweepRecord:
    """Writes a sweep's own journal.

    Args:
        folder: of the sweep.
        config: that its axes change.
        journal: of the sweep.
    """

    def __init__(self, folder: Path, config: Config, journal: Journal) -> None:
        self._folder = folder
        self._config = config
        self._journal = journal
        self._written: set[Path] = set()

    def start(self, dataset: str, uri: str, source: Mapping[str, str]) -> None:
        """Open the journal, or go on with it; the views are there from the beginning.

        Args:
            dataset: its name.
            uri: of the MLflow store.
            source: tags that say who started the sweep, and from which commit.
        """
        sweep, config = comparison.read(self._folder), self._config
        name, sweep_id = sweep["name"], sweep["sweep_id"]
        self._journal.start(
            experiment=config.tracking.experiment or f"fedistill-{dataset}",
            run_name=f"sweep {name}",
            tags={**source, "role": ROLE, "sweep_id": sweep_id, "config_name": config.name},
            uri=uri or None,
        )
        self._journal.params({**config_file.to_dict(config), "axes": sweep["axes"]})
        now = round(time.time() * 1000)
        views = [
            mlflow_views.lines_view(sweep_id, name, now),
            mlflow_views.runs_view(sweep_id, name, sweep["axes"]["ipc"], now),
        ]
        self._journal.experiment_tags(dict(views))
        self._journal.experiment_note(sweep_id, mlflow_views.note(sweep_id, name, sweep["created"]))
        self.update()

    def update(self) -> None:
        """Add what has been finished since the last call, and draw the comparison again."""
        rows = comparison.rows(self._folder)
        labels = comparison.labels(comparison.lines(comparison.read(self._folder)))
        # Zero-padded: MLflow sorts runs by name.
        names = {
            line: name.replace(f"IPC {line.ipc}", f"IPC {line.ipc:03d}")
            for line, name in labels.items()
        }
        groups = mlflow_colours.told_apart(mlflow_views.LINE_TAG, names.values())
        for row in rows:
            if row.folder in self._written:
                continue
            line = row.line
            run = f"line/{line.distiller}-{line.alpha}-{line.ipc:04d}"
            self._journal.child(
                run,
                names[line],
                "line",
                {"ipc": line.ipc, "alpha": line.alpha, "method": line.distiller},
            )
            # A tag, since the name changes when a later command adds a method or an alpha.
            self._journal.tags({mlflow_views.LINE_TAG: groups[names[line]]}, run)
            points = [(row.clients, value) for value in row.top1]
            self._journal.curve(mlflow_views.LINE_METRIC, points, run)
            if row.teachers is not None:
                self._journal.curve("teachers_vs_clients", [(row.clients, row.teachers)], run)
        self._written |= {row.folder for row in rows}
        paths = comparison_files.write(self._folder) if rows else []
        for path in paths:
            self._journal.artifact(path, path.parent.name)
        tables = [
            {"path": f"{path.parent.name}/{path.name}", "type": "table"}
            for path in paths
            if path.suffix == ".json"
        ]
        if tables:  # what makes MLflow show a file as a table
            self._journal.tags({"mlflow.loggedArtifacts": json.dumps(tables)})
