"""What all tests share: one torch thread, no telemetry, a cache of their own, no store."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FEDISTILL_SIMULATION"] = "tests"  # clients of tests are those of a simulation
os.environ.pop("FEDISTILL_STORE", None)  # tests do the work that they look at

torch.set_num_threads(1)

settings.register_profile(
    "fedistill",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("fedistill")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own hook reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what starts processes of Flower on one worker, in order: two would want four cores."""
    for item in items:
        if item.get_closest_marker("smoke") or item.get_closest_marker("deploy"):
            item.add_marker(pytest.mark.xdist_group("flower"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say so when the groups are lost, as they are with pytest 9.2 and pytest-xdist 3.8."""
    if session.config.getoption("loadgroup", False):  # on a worker
        grouped = (item for item in session.items if item.get_closest_marker("xdist_group"))
        lost = [item.nodeid for item in grouped if not item.nodeid.endswith("@flower")]
        assert not lost, f"pytest-xdist keeps no groups together here: {lost[0]} has none"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["FEDISTILL_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # a local run sets it to the number of cores
