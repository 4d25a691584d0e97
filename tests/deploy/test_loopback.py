"""A real deployment on this machine: TLS, node keys, three devices with folders of their own."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_config
from loopback import GIVEN_UP_S, NAME, Loopback, children, until
from split_folders import write_central, write_parts

from fedistill import config_file, results, runner
from fedistill.config import Config
from fedistill.progress import Event
from fedistill.sets import SyntheticSet

pytestmark = pytest.mark.deploy

SITES = ("site-0", "site-1", "site-2")
PATIENCE_S = 300.0  # only a broken test waits for so long; a busy machine may be slow


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
    loopback.start_serverapps(MLFLOW_TRACKING_URI=f"sqlite:///{loopback.folder}/mlflow.db")
    found = Federation(loopback, config)
    loopback.register(*SITES)
    for number in range(len(SITES)):
        found.start(number)  # a run waits for them
    return found


def write(config: Config, path: Path, **changes: Any) -> Path:
    tree = config_file.to_dict(config)
    for section, keys in changes.items():
        tree[section] = tree[section] | keys if isinstance(keys, dict) else keys
    path.write_text(config_file.dump(config_file.from_dict(tree)))
    return path


def test_devices_die_and_the_set_is_full_all_the_same(
    federation: Federation, config: Config, tmp_path: Path
):
    """One is killed during squeeze, another during recover; both serve the next run again."""
    loopback = federation.loopback
    output = tmp_path / "few"
    long = {
        "teacher": {"epochs": 300},
        "distill": {"iterations": 2000},
        "seed": 1,
        "tracking": {"enabled": False},
    }
    path = write(config, tmp_path / "few.yaml", **long)
    command = loopback.run("run", str(path), "--superlink", NAME, "--output", str(output))
    until(lambda: federation.is_in(1, "squeeze"), PATIENCE_S, "site-1 squeezes")
    loopback.kill(SITES[1])
    until(lambda: federation.is_in(2, "recover"), PATIENCE_S, "site-2 recovers")
    loopback.kill(SITES[2])
    killed = time.monotonic()
    said = command.end()
    result = results.read_json(output / results.RESULT)
    assert result["absent_clients"] == [1, 2]
    # They were there when the run began: not refused at the door.
    assert all(why.startswith("its node is gone") for why in result["absent_because"].values())
    assert SyntheticSet.load(output / "sets" / "ipc-3").clients.unique().tolist() == [0]
    assert result["sets"]["3"]["images"] == 30
    assert "its node is gone" in said
    # A SuperNode that was killed is refused until it would be given up.
    time.sleep(max(0.0, killed + GIVEN_UP_S - time.monotonic()))
    for number in (1, 2):
        federation.start(number)  # the next run waits for them


def test_three_devices_make_the_set_of_the_simulation_though_the_server_dies(
    federation: Federation, config: Config, expected: str, tmp_path: Path
):
    """The devices that died are back; when all have answered, they and the server are killed.

    So nobody is left who could be asked again. The operator sees the server's MLflow, but not its
    disk.
    """
    loopback = federation.loopback
    output = tmp_path / "whole"
    path = write(config, tmp_path / "whole.yaml", student={"epochs": 1000})
    command = loopback.run(
        *("run", str(path), "--superlink", NAME, "--output", str(output)),
        FEDISTILL_RUNS=str(tmp_path),
        MLFLOW_TRACKING_URI=f"sqlite:///{loopback.folder}/mlflow.db",
    )
    shown = output / runner.PROGRESS
    until(lambda: "evaluate" in stages(shown), PATIENCE_S, "students are trained")
    for site in SITES:
        loopback.kill(site, signal.SIGTERM)
    for pid in children(loopback.processes["serverapps"].pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    loopback.kill("superlink")
    loopback.start_superlink()
    said = command.end()
    result = results.read_json(output / results.RESULT)
    assert result["sets"]["3"]["sha256"] == expected
    assert SyntheticSet.load(output / "sets" / "ipc-3").sha256 == expected
    assert result["absent_clients"] == []
    assert result["devices"] == dict(zip("012", SITES, strict=True))
    assert "devices are known from before" in (output / "log.txt").read_text()
    assert result["mlflow"]["run_id"]
    assert (output / "sets" / "ipc-3" / "labels.safetensors").is_file()
    assert (output / "report.html").is_file()
    assert not (output / "replies").exists()
    for part in ("3 of 3 nodes are there", "collect", "it is started again"):
        assert part in said
    # Nothing of the devices' disks is in what the operator gets.
    for name in ("result.json", "tracking.jsonl", "log.txt", "report.html"):
        assert str(federation.folders[0]) not in (output / name).read_text(), name


def test_a_stranger_gets_nothing(loopback: Loopback, federation: Federation, tmp_path: Path):
    federation.start(0)  # with the same options, its own key and the right authority
    until(lambda: loopback.online() == 1, PATIENCE_S, "the known one is online")
    loopback.credentials("stranger", folder=tmp_path / "strange")
    key = str(tmp_path / "strange" / "stranger" / "node.key")
    wrong_authority = {"root_certificates": str(tmp_path / "strange" / "ca.crt")}
    known = str(loopback.keys / SITES[0] / "node.key")
    loopback.start_node("no-key", {}, auth_supernode_private_key="", max_retries="2")
    loopback.start_node("unknown-key", {}, auth_supernode_private_key=key, max_retries="2")
    loopback.start_node(
        "wrong-ca", {}, auth_supernode_private_key=known, max_retries="2", **wrong_authority
    )
    for name in ("no-key", "unknown-key", "wrong-ca"):
        process = loopback.processes[name]
        until(lambda process=process: process.poll() is not None, PATIENCE_S, f"{name} gives up")
        assert process.returncode != 0, name
    assert loopback.online() == 1
