"""Runs on devices that failed, repeated when what was wrong has been mended."""

from pathlib import Path
from typing import Any

import pytest
from deployed import Devices, deploy, named
from fakes import tiny_config
from federation import failing

from fedistill import client_app, wire, wire_evaluate, wire_labels
from fedistill.config import Config
from fedistill.errors import ClientsFailed

pytestmark = pytest.mark.usefixtures("server")


def _fail(*_: object, **__: object) -> None:
    raise MemoryError("no memory left")


def _mended(config: Config, devices: list[dict[str, Any]], step: str, words: str) -> Devices:
    """Repeat a run whose devices all failed at a step of the ClientApp; return who was asked."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client_app, step, _fail)
        with pytest.raises(ClientsFailed, match=words):
            deploy(config, Devices(devices))
    grid = Devices(devices)
    assert deploy(config, grid)["absent_clients"] == []
    assert grid.asked[wire.DISTILL] == 0  # what went well is kept
    return grid


def _config(config: Config, **sections: Any) -> Config:
    return tiny_config(
        data={"name": config.data.name, "fraction": 1.0},
        partition={"clients": 3},
        federation={"wait_s": 0.5, "min_clients": 2},
        **sections,
    )


def test_nobody_takes_the_place_and_the_work_of_a_device_that_is_there(
    config, folders, expected, monkeypatch
):
    with monkeypatch.context() as patched:
        failing(patched, 1, 2)
        with pytest.raises(ClientsFailed, match="1 of 3 clients are left"):
            deploy(config, Devices(named(folders)))
    pretenders = [{"data": str(folders[1]), "partition-id": 0}, named(folders)[0]]
    grid = Devices([*pretenders, *named(folders)])
    result = deploy(config, grid)
    assert result["devices"] == {"0": "site-0", "1": "site-1", "2": "site-2"}
    assert result["sets"]["2"]["sha256"] == expected
    assert grid.asked[wire.DISTILL] == 2  # what the first has made is still there


def test_labellers_that_have_been_mended_are_asked_again(config, folders, tmp_path: Path):
    devices = named(folders)
    for number, device in enumerate(devices):
        device["store"] = str(tmp_path / f"store-{number}")
    labelled = _config(config, relabel={"at": "clients"})
    grid = _mended(labelled, devices, "label", "no client is left that labels")
    assert grid.asked[wire_labels.LABEL] == 3


def test_testers_that_have_been_mended_are_asked_again(config, folders):
    devices = [device | {"holdout": 0.25} for device in named(folders)]
    tested = _config(config, evaluate={"at": "clients"})
    grid = _mended(tested, devices, "examine", "no device is left that tests students")
    assert grid.asked[wire_evaluate.EVALUATE] == 3
