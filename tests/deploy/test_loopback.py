"""A real deployment on this machine: TLS, node keys, three devices with folders of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NAME, Loopback, until
from fakes import tiny_config
from split_folders import write_central, write_parts

from fedistill import config_file, results, runner
from fedistill.config import Config
from fedistill.progress import Event
from fedistill.sets import SyntheticSet

pytestmark = pytest.mark.deploy

SITES = ("site-0", "site-1", "site-2")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("central")
    write_central(folder)
    return tiny_config(
        data={"name": str(folder), "fraction": 1.0},
        partition={"clients": 3},
        teacher={"epochs": 3},
        distill={"ipc": [3], "iterations": 20},
        baselines=["hard_label", "ensemble"],
        federation={"wait_s": 60, "min_clients": 1},
        tracking={"enabled": True},
    )


@pytest.fixture(scope="module")
def expected(config: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The set of a simulation of the same split."""
    folder = tmp_path_factory.mktemp("simulation")
    own = {"tracking": {"enabled": False}}
    tree = config_file.from_dict(config_file.to_dict(config) | own)
    found: str = runner.run(tree, folder / "run", "local")["sets"]["3"]["sha256"]
    torch.set_num_threads(1)
    return found


class Federation:
    """Three sites with their node configs."""

    def __init__(self, loopback: Loopback, config: Config) -> None:
        self.loopback = loopback
        self.folders = write_parts(loopback.folder / "devices", config)

    def start(self, number: int) -> None:
        site = SITES[number]
        progress = self.progress(number)
        progress.unlink(missing_ok=True)
        node = {
            "data": str(self.folders[number]),
            "name": site,
            "store": str(self.loopback.folder / f"store-{number}"),
            "cpus": 1,
        }
        self.loopback.start_node(site, node, progress=progress)

    def progress(self, number: int) -> Path:
        return self.loopback.folder / f"progress-{number}.jsonl"

    def is_in(self, number: int, stage: str) -> bool:
        return stage in stages(self.progress(number))


def stages(path: Path) -> list[str]:
    """Return the stages that a progress file tells of."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [event.stage for event in map(Event.from_line, lines) if event is not None]


@pytest.fixture(scope="module")
def federation(loopback: Loopback, config: Config) -> Federation:
    loopback.credentials(*SITES)
    loopback.start_superlink()
    loopback.start_serverapps()
    found = Federation(loopback, config)
    for number, site in enumerate(SITES):
        loopback.register(site)
        found.start(number)
    until(lambda: loopback.online() == 3, 90, "three sites are online")
    return found


def write(config: Config, path: Path, **changes: Any) -> Path:
    tree = config_file.to_dict(config)
    for section, keys in changes.items():
        tree[section] = tree[section] | keys
    path.write_text(config_file.dump(config_file.from_dict(tree)))
    return path


def run_of(loopback: Loopback, name: str) -> Path:
    """Return the folder on the server of the run with such an output folder."""
    (found,) = loopback.runs.glob(f"{name}-*")
    return found


def test_three_devices_make_the_set_of_the_simulation(
    federation: Federation, config: Config, expected: str, tmp_path: Path
):
    loopback = federation.loopback
    output = tmp_path / "first"
    path = write(config, tmp_path / "first.yaml")
    said = loopback.run("run", str(path), "--superlink", NAME, "--output", str(output)).end()
    result = results.read_json(output / results.RESULT)
    assert result["sets"]["3"]["sha256"] == expected
    assert SyntheticSet.load(output / "sets" / "ipc-3").sha256 == expected
    assert result["devices"] == dict(zip("012", SITES, strict=True))
    assert result["absent_clients"] == []
    assert result["mlflow"]["run_id"]
    assert (output / "report.html").is_file()
    assert "3 of 3 nodes are there" in said
    assert "collect" in said
    assert not (output / "replies").exists()
    # Nothing of the devices' disks is in what the operator gets.
    for name in ("result.json", "tracking.jsonl", "log.txt", "report.html"):
        assert str(federation.folders[0]) not in (output / name).read_text(), name
