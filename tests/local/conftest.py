"""What tests share: data dealt to devices, and a server, for deployments; grids for sweeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import tiny_config, tiny_tree
from split_folders import write_central, write_parts
from sweeps import AXES

from fedistill import deployment, grid, runner
from fedistill.config import Config, SweepConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """What all deployments here run."""
    folder = tmp_path_factory.mktemp("central")
    write_central(folder, each=12)
    return tiny_config(
        data={"name": str(folder), "fraction": 1.0},
        partition={"clients": 3},
        distill={"ipc": [2]},
        baselines=["hard_label", "ensemble"],
        federation={"wait_s": 0.5, "min_clients": 2},
    )


@pytest.fixture(scope="module")
def folders(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What each device holds."""
    return write_parts(tmp_path_factory.mktemp("devices"), config)


@pytest.fixture(scope="module")
def expected(config: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The set of a simulation of the same split."""
    folder = tmp_path_factory.mktemp("simulation") / "run"
    found: str = runner.run(config, folder, "local")["sets"]["2"]["sha256"]
    return found


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a folder of its own for its runs."""
    monkeypatch.setenv(deployment.RUNS, str(tmp_path / "runs"))
    monkeypatch.delenv("FEDISTILL_STORE", raising=False)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., grid.Grid]:
    """Loads small grids."""

    def load(axes: SweepConfig = AXES, **sections: Any) -> grid.Grid:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tiny_tree(**sections)))
        return grid.load(path, [], axes)

    return load
