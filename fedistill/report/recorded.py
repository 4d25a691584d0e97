"""The files of a run that has finished, as a report needs them.

A config need not be valid today to be reported, so it is read as the plain tree that it is.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedistill import results
from fedistill.comparison import Point
from fedistill.errors import OutputError
from fedistill.journal import JOURNAL, Event, points, read_events, without_secrets
from fedistill.report.page import Image

Curve = list[tuple[int, float]]
Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run that has finished.

    Attributes:
        folder: that holds them.
        result: its result.json.
        config_yaml: its config.yaml, without passwords.
    """

    folder: Path
    result: Tree
    config_yaml: str

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run.

        Raises:
            OutputError: a file is missing or damaged.
        """
        try:
            config_yaml = (folder / results.CONFIG).read_text(encoding="utf-8")
            result = results.read_json(folder / results.RESULT)
        except (OSError, ValueError) as error:
            raise OutputError(f"the run in {folder} cannot be read: {error}") from error
        return cls(folder, result, without_secrets(config_yaml))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config as a plain tree, as it was written: it need not be valid today."""
        import yaml

        try:
            tree = yaml.safe_load(self.config_yaml)
        except yaml.YAMLError as error:
            raise OutputError(f"{self.folder / results.CONFIG} cannot be read: {error}") from error
        if not isinstance(tree, dict):
            raise OutputError(f"{self.folder / results.CONFIG} is no config of a run")
        return tree

    @property
    def data_name(self) -> str:
        """The name of the data set; of a folder of this machine its last part alone."""
        name = str(self.config["data"]["name"])
        return Path(name).name if Path(name).is_absolute() else name

    @property
    def own_networks(self) -> list[Mapping[str, Any]]:
        """The networks of the clients, which federated averaging trains too."""
        model = self.config["model"]
        return model if isinstance(model, list) else [model]

    @property
    def teacher_networks(self) -> list[Mapping[str, Any]]:
        """The networks of the teachers: the clients' own, or the backbones of each."""
        return self.config["teacher"].get("backbones") or self.own_networks

    @property
    def split(self) -> str:
        """How the data were dealt: "dirichlet, alpha 0.1"."""
        if "devices" in self.result:
            return "what each device has"
        partition = self.config["partition"]
        keys = ("alpha", "classes_per_client", "shards_per_client")
        options = {key.replace("_", " "): partition.get(key) for key in keys}
        told = [f"{key} {value}" for key, value in options.items() if value is not None]
        return ", ".join([partition["name"], *told])

    @cached_property
    def events(self) -> list[Event]:
        """The journal."""
        return [event for event, _ in read_events(self.folder / JOURNAL)]

    @property
    def tags(self) -> Mapping[str, str]:
        """The journal's tags of the run: commit, user, and the like."""
        return next((event["tags"] for event in self.events if event["event"] == "start"), {})

    @property
    def date(self) -> str:
        """When the run started, in UTC."""
        times = (event["time"] for event in self.events if event["event"] == "start")
        started = next(times, None)
        if started is None:
            return "not recorded"
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started / 1000))

    def curves(self, run: str, name: str) -> dict[str, Curve]:
        """Return the journal's curves of a name, by the run that they are of.

        Args:
            run: what the run's name begins with, such as `client/`.
            name: what the curve's name begins with.
        """
        found: dict[str, Curve] = {}
        for event in self.events:
            if event["event"] != "curve" or not event["run"].startswith(run):
                continue
            if event["name"].startswith(name):
                rest = event["name"].removeprefix(name)
                key = f"{event['run'].removeprefix(run)}{rest}"
                found[key] = [(point.step, point.value) for point in points(event)]
        return {key: found[key] for key in sorted(found)}

    @cached_property
    def partition(self) -> Mapping[str, Any]:
        """Who holds what; empty if that was not kept."""
        try:
            return results.read_json(self.folder / "partition.json")
        except (OSError, ValueError):
            return {}

    @property
    def held(self) -> list[int]:
        """Images of each client; empty if that was not kept."""
        return [sum(row) for row in self.partition.get("histograms", [])]

    def image(self, name: str, caption: str) -> Image | None:
        """Return a picture of the run's figures."""
        path = self.folder / "figures" / f"{name}.png"
        return Image.read(path, caption, wide=name == "partition")


def point(scores: Tree) -> Point:
    """Read what result.json says about some students."""
    return Point(scores["top1_mean"], scores["top1_std"], scores["n"])
