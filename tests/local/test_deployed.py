"""A deployment in this process: devices with folders of their own, and a server that may die."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from deployed import Devices, deploy, deploy_and_die, named
from federation import failing
from flwr.app import RecordDict

from fedistill import config_file, data, deployment, runner, tracking, wire
from fedistill.errors import ClientsFailed, ConfigError, DataError, UserError
from fedistill.sets import SyntheticSet
from strategies import server_app

pytestmark = pytest.mark.usefixtures("server")


def test_devices_make_the_set_of_the_simulation(config, folders, expected):
    result = deploy(config, Devices(named(folders)))
    assert result["sets"]["2"]["sha256"] == expected
    assert result["devices"] == {"0": "site-0", "1": "site-1", "2": "site-2"}
    assert result["absent_clients"] == []
    assert result["sets"]["2"]["baselines"].keys() == {"hard_label", "ensemble"}
    folder = deployment.folder_of("trial")
    assert SyntheticSet.load(folder / "sets" / "ipc-2").sha256 == expected
    held = json.loads((folder / "partition.json").read_text())
    assert held.keys() == {"class_names", "histograms"}  # not whose images are where
    assert [sum(column) for column in zip(*held["histograms"], strict=True)] == [12] * 10
    assert not (folder / deployment.REPLIES).exists()  # it held teachers


def test_devices_may_claim_their_numbers(config, folders, expected):
    claims = [{"data": str(folder), "partition-id": n} for n, folder in enumerate(folders)]
    result = deploy(config, Devices(claims[::-1]))
    assert result["sets"]["2"]["sha256"] == expected


def test_a_server_that_dies_with_all_replies_asks_nobody_again(
    config, folders, expected, monkeypatch
):
    deploy_and_die(monkeypatch, config, Devices(named(folders)))
    nobody = Devices([])
    result = deploy(config, nobody)
    assert result["sets"]["2"]["sha256"] == expected
    assert nobody.asked == {}
    assert result["devices"] == {"0": "site-0", "1": "site-1", "2": "site-2"}
    lines = (deployment.folder_of("trial") / "tracking.jsonl").read_text().splitlines()
    starts = [event for event in map(json.loads, lines) if event["event"] == "start"]
    assert len({event["journal_id"] for event in starts}) == 1  # one run in MLflow
    assert [event["resumed"] for event in starts] == [False, True]


def test_a_server_that_dies_between_replies_asks_the_others_alone(
    config, folders, expected, monkeypatch
):
    real, seen = wire.decode_share, []

    def die_at_the_third(content: RecordDict, request: wire.DistillRequest) -> Any:
        seen.append(request.partition_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(content, request)

    with monkeypatch.context() as patched:
        patched.setattr(wire, "decode_share", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            deploy(config, Devices(named(folders)))
    kept = deployment.folder_of("trial") / deployment.REPLIES
    answered = {int(path.name.split("-")[1]) for path in kept.glob(f"{wire.DISTILL}-*")}
    (left,) = {0, 1, 2} - answered
    # It alone comes back, and its node has another id: who is who goes by name.
    grid = Devices([named(folders)[left]], first_node=900)
    result = deploy(config, grid)
    assert result["sets"]["2"]["sha256"] == expected
    assert grid.asked == {wire.DESCRIBE: 1, wire.DISTILL: 1}
    assert len(seen) == 3
    traffic = result["bytes"]["per_client"]
    assert all(traffic[client]["stages"][wire.DISTILL]["up"] > 1000 for client in "012")


def test_who_failed_before_the_server_died_is_not_asked_again(config, folders, monkeypatch):
    broken = named(folders)
    broken[1]["data"] = str(folders[1] / "nowhere")
    whole = deploy(config, Devices(broken), "whole")
    assert whole["absent_clients"] == [2]  # who it is, nobody can know
    assert "there is no such folder" in whole["absent_because"]["2"]
    assert "nowhere" not in whole["absent_because"]["2"]
    deploy_and_die(monkeypatch, config, Devices(broken))
    result = deploy(config, Devices(named(folders)))  # mended, too late for this run
    assert result["sets"]["2"]["sha256"] == whole["sets"]["2"]["sha256"]
    assert result["absent_clients"] == [2]


def test_a_run_begins_with_those_who_came_if_they_are_enough(config, folders):
    result = deploy(config, Devices(named(folders)[:2]))
    assert result["absent_clients"] == [2]
    assert result["sets"]["2"]["images"] == 20
    with pytest.raises(ClientsFailed, match=r"1 of 3 nodes came within federation\.wait_s"):
        deploy(config, Devices(named(folders)[:1]), "lonely")


def test_a_device_trains_the_network_that_it_has_chosen(config, folders):
    devices = named(folders)
    devices[2]["model"] = "{name: convnet, depth: 1, width: 4}"
    result = deploy(config, Devices(devices))
    models = [config_file.to_dict(config)["model"]] * 2 + [
        {"name": "convnet", "depth": 1, "width": 4}
    ]
    tree = config_file.to_dict(config) | {"model": models}
    simulated = runner.run(
        config_file.from_dict(tree), deployment.runs_folder() / "simulated", "local"
    )
    assert result["sets"]["2"]["sha256"] == simulated["sets"]["2"]["sha256"]


def test_what_needs_the_images_of_devices_is_refused_by_the_server_too(config, folders):
    tree = config_file.to_dict(config) | {"baselines": ["random"]}
    with pytest.raises(ConfigError, match="stay where they are"):
        deploy(config_file.from_dict(tree), Devices(named(folders)))


def test_a_server_needs_no_training_images(config, folders, expected, tmp_path):
    """Mean and deviation come from the devices, to the last bit."""
    central = tmp_path / Path(config.data.name).name  # the name is part of the set
    shutil.copytree(Path(config.data.name) / "test", central / "test")
    tree = config_file.to_dict(config)
    tree["data"]["name"] = str(central)
    result = deploy(config_file.from_dict(tree), Devices(named(folders)))
    assert result["sets"]["2"]["sha256"] == expected
    tree["data"]["zca"] = True
    with pytest.raises(DataError, match=r"data\.zca is True.*the server has none"):
        deploy(config_file.from_dict(tree), Devices(named(folders)), "whitened")


def test_a_server_needs_no_images_at_all(config, folders, expected):
    tree = config_file.to_dict(config)
    tree["data"] = {
        "name": "devices", "classes": list("0123456789"), "size": 8, "channels": 1,
    }  # fmt: skip
    tree["evaluate"] = {"at": "clients"}
    tree["baselines"] = ["hard_label"]
    keep = [device | {"holdout": 0.25} for device in named(folders)]
    result = deploy(config_file.from_dict(tree), Devices(keep))
    score = result["sets"]["2"]["students"]["convnet"]
    assert 0 < score["top1_mean"] <= 100
    assert result["sets"]["2"]["images"] == 20


def test_classes_that_nobody_asks_for_are_told(config, folders, tmp_path, caplog):
    devices = named(folders)
    mixed = tmp_path / "mixed"
    shutil.copytree(folders[0], mixed)
    shutil.copytree(folders[0] / "3", mixed / "bananas")
    devices[0]["data"] = str(mixed)
    result = deploy(config, Devices(devices))
    assert result["absent_clients"] == []
    assert "client 0 (site-0) has images of classes that nobody asks for: bananas" in caplog.text


def test_fedavg_finds_its_devices_when_the_server_has_died(config, folders, monkeypatch):
    tree = config_file.to_dict(config) | {"baselines": ["fedavg"], "fedavg": {"rounds": 1}}
    with_rival = config_file.from_dict(tree)
    deploy_and_die(monkeypatch, with_rival, Devices(named(folders)))
    grid = Devices(named(folders), first_node=900)
    result = deploy(with_rival, grid)
    assert grid.asked[wire.DISTILL] == 0
    assert result["sets"]["2"]["baselines"]["fedavg_1"]["n"] == 1


def test_a_run_that_failed_can_be_repeated_when_its_devices_are_mended(config, folders, expected):
    broken = named(folders)
    broken[1]["data"] = broken[2]["data"] = str(folders[1] / "nowhere")
    with pytest.raises(ClientsFailed, match="1 of 3 clients are left"):
        deploy(config, Devices(broken))
    grid = Devices(named(folders))
    result = deploy(config, grid)
    assert result["absent_clients"] == []
    assert result["sets"]["2"]["sha256"] == expected


def test_who_failed_at_its_images_is_not_asked_again_when_the_server_has_died(
    config, folders, monkeypatch
):
    failing(monkeypatch, 1)
    whole = deploy(config, Devices(named(folders)), "whole")
    assert whole["absent_clients"] == [1]
    deploy_and_die(monkeypatch, config, Devices(named(folders)))
    nobody = Devices([])
    result = deploy(config, nobody)
    assert nobody.asked == {}
    assert result["sets"]["2"]["sha256"] == whole["sets"]["2"]["sha256"]
    assert "ran out of memory" in result["absent_because"]["1"]


def test_a_server_that_dies_with_its_result_has_nothing_left_to_do(config, folders, expected):
    deploy(config, Devices(named(folders)))
    folder = deployment.folder_of("trial")
    (folder / deployment.REPLIES).mkdir()  # what is removed last was still there
    result = deploy(config, Devices([]))
    assert result["sets"]["2"]["sha256"] == expected
    assert not (folder / deployment.REPLIES).exists()


def test_a_server_that_has_its_result_sends_to_mlflow_what_it_lacks(
    config, folders, monkeypatch, caplog
):
    tree = config_file.to_dict(config) | {"tracking": {"enabled": True}}
    tracked, sent = config_file.from_dict(tree), []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setattr(server_app.MlflowSink, "start", lambda sink: None)  # as if it were away
    first = deploy(tracked, Devices(named(folders)))

    def deliver(folder: Path, uri: str, warn: object) -> None:
        sent.append((folder, uri))
        raise UserError("MLflow did not take the run")

    monkeypatch.setattr(tracking, "deliver", deliver)
    assert deploy(tracked, Devices([])) == first
    assert sent == [(deployment.folder_of("trial"), "http://mlflow:5000")]
    assert "MLflow did not take the run" in caplog.text


def test_a_device_that_keeps_its_pixel_levels_back_takes_no_part(config, folders, monkeypatch):
    tree = config_file.to_dict(config) | {
        "evaluate": {"at": "clients"},
        "baselines": ["hard_label"],
    }
    tree["data"] = {"name": "devices", "classes": list("0123456789"), "size": 8, "channels": 1}
    levels, asked = data.pixel_levels, []

    def once_nothing(images: Any) -> Any:
        asked.append(len(images))
        return levels(images) if len(asked) > 1 else ()

    monkeypatch.setattr(data, "pixel_levels", once_nothing)
    keep = [device | {"holdout": 0.25} for device in named(folders)]
    result = deploy(config_file.from_dict(tree), Devices(keep))
    assert result["absent_clients"] == [2]
    assert "holds no pixel levels" in result["absent_because"]["2"]
