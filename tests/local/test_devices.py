"""Real devices in this process: own folders, own models, own tests; nobody is trusted."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config, write_class_folders
from federation import assert_full, start
from flwr.app import Message
from PIL import Image

from fedistill import client_app, config_file, data, device, partition, processes, runner, wire
from fedistill.config import Config, DataConfig
from fedistill.errors import ClientsFailed
from fedistill.images import ImageSet
from fedistill.wire import Description
from strategies import local
from strategies.tested_at_home import require_testers

CONFIG = tiny_config(partition={"clients": 3})
SPEC = data.load(CONFIG.data).spec


@pytest.fixture(autouse=True)
def _real_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(processes.MARK)
    monkeypatch.setenv("FEDISTILL_CACHE", str(tmp_path / "cache"))


def grid_of(*nodes: Mapping[str, Any]) -> local.LocalGrid:
    grid = local.LocalGrid(client_app.app, len(nodes), {})
    for context, node in zip(grid._contexts.values(), nodes, strict=True):
        context.node_config = dict(node)
    return grid


def shards(root: Path, config: Config = CONFIG) -> list[Path]:
    """Write what each client of a simulation would hold to a folder of its own."""
    loaded = data.load(config.data, config.seed)
    names = loaded.spec.class_names
    parts = partition.split(loaded.train.labels, 10, config.partition, config.seed)
    return [
        write_class_folders(root / f"{number}" / "train", loaded.train.select(index), names).parent
        for number, index in enumerate(parts.indices)
    ]


def describe(
    grid: local.LocalGrid, config: Config = CONFIG, partition_id: int = -1, pixels: bool = False
) -> list[Description | str]:
    """Ask every device; return what it says, or why it does not."""
    with local.task_identity():
        messages = [
            Message(
                wire.encode_describe_request(config, SPEC, partition_id, pixels),
                dst_node_id=node,
                message_type=wire.DESCRIBE,
            )
            for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(messages))
    return [
        reply.error.reason if reply.has_error() else wire.decode_description(reply.content, SPEC)
        for reply in replies
    ]


def reason(found: Description | str) -> str:
    assert isinstance(found, str), found
    return found


def description(found: Description | str) -> Description:
    assert isinstance(found, Description), found
    return found


def test_devices_describe_themselves(tmp_path: Path):
    folders = shards(tmp_path / "own")
    extra = folders[0] / "train" / "letter x"
    extra.mkdir()
    Image.new("L", (8, 8)).save(extra / "0.png")
    first, second, third = map(
        description,
        describe(
            grid_of(
                {"data": str(folders[0]), "name": "ward 3", "holdout": 0.2},
                {"data": str(folders[1]), "partition-id": 7, "model": "{name: convnet, depth: 1}"},
                {"partition-id": 2, "num-partitions": 3},
            ),
            pixels=True,
        ),
    )
    assert (first.name, first.partition_id, second.partition_id) == ("ward 3", -1, 7)
    assert first.unknown_classes == ("letter x",)
    assert first.held_out > 5
    assert wire.model_of(second) == config_file.read_model("{name: convnet, depth: 1}", "")
    assert second.held_out == 0
    assert third.held_out == len(data.load(CONFIG.data).test.labels[2::3])
    train = data.load(CONFIG.data).train
    parts = partition.split(train.labels, 10, CONFIG.partition, CONFIG.seed)
    assert second.histogram == train.select(parts.indices[1]).histogram(10)
    assert second.pixels == data.pixel_levels(train.select(parts.indices[1]).images)


def test_a_mistake_on_a_device_is_told_in_short_and_its_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "own" / "0").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "own" / "0" / name).write_bytes(b"the secret of this file")
    (tmp_path / "link").symlink_to(tmp_path / "own")
    broken = {"data": str(tmp_path / "link")}
    wrong, unread = map(reason, describe(grid_of({"dta": "x"}, broken)))
    assert wrong.splitlines()[0] == wrong.splitlines()[-1]
    assert wrong.startswith("ConfigError: the node config has 1 error")
    assert "did you mean 'data'" in wrong.splitlines()[-1]
    assert "images that cannot be read: 2 of class '0'; mend" in unread.splitlines()[-1]
    for hidden in ("secret", ".png", str(tmp_path)):
        assert hidden not in unread
        assert hidden in caplog.text or hidden == "secret"

    def fail(*args: object, **options: object) -> None:
        raise ValueError("row 7: name=Jane, age=61")

    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / "own" / "0" / name)
    monkeypatch.setattr(device, "_as_asked", fail)
    (hidden,) = map(reason, describe(grid_of(broken)))
    assert hidden.splitlines()[-1] == "ValueError: the device's own log says more"
    assert 'File "fedistill/device.py"' in hidden
    assert str(Path(device.__file__).parents[1]) not in hidden
    assert "Jane" not in hidden
    assert "Jane" in caplog.text


def test_a_method_that_sends_real_images_is_refused_unless_both_sides_allow_it(tmp_path: Path):
    nodes = {"partition-id": 0}, {"partition-id": 1, "allow-real-images": False}
    real = {"distill": {"name": "rded", "ipc": [1]}, "partition": {"clients": 3}}
    for found in describe(grid_of(*nodes), _config(**real)):
        assert "distill.name rded sends images that show real ones" in reason(found)
    allowed = _config(**real, privacy={"allow_real_images": True})
    first, second = describe(grid_of(*nodes), allowed)
    description(first)
    assert "allow-real-images = false" in reason(second).splitlines()[-1]


def _config(**sections: Any) -> Config:
    tree = config_file.to_dict(CONFIG)
    del tree["distill"], tree["relabel"]
    return config_file.from_dict({**tree, **sections})


def test_folders_of_devices_make_the_set_of_a_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded = data.load(CONFIG.data)
    names = loaded.spec.class_names
    write_class_folders(tmp_path / "all" / "train", loaded.train, names)
    write_class_folders(tmp_path / "all" / "test", loaded.test, names)
    config = replace(CONFIG, data=DataConfig(name=str(tmp_path / "all")))
    nodes = [{"data": str(folder)} for folder in shards(tmp_path / "own", config)]
    strategy, _ = start(config, lambda *_: grid_of(*nodes))
    assert strategy.failures == {}
    assert_full(strategy.sets[1], 1)
    monkeypatch.setenv(processes.MARK, "here")
    simulated, _ = start(config)
    assert strategy.histograms == simulated.histograms
    assert strategy.sets[1].sha256 == simulated.sets[1].sha256


def test_a_device_keeps_its_artefacts_in_its_own_store(tmp_path: Path):
    nodes = [{"partition-id": n, "store": str(tmp_path / f"store {n}")} for n in range(3)]
    first, _ = start(CONFIG, lambda *_: grid_of(*nodes))
    assert all(list((tmp_path / f"store {n}").glob("teacher-*")) for n in range(3))
    again, _ = start(CONFIG, lambda *_: grid_of(*nodes))
    assert {share.from_store for share in again.shares.values()} == {("squeeze", "recover")}
    assert again.sets[1].sha256 == first.sets[1].sha256


def test_a_warning_about_its_store_does_not_say_where_that_is(tmp_path: Path):
    (tmp_path / "full").write_text("no folder")
    nodes = [{"partition-id": n, "store": str(tmp_path / "full")} for n in range(3)]
    strategy, _ = start(CONFIG, lambda *_: grid_of(*nodes))
    for share in strategy.shares.values():
        assert any(text.startswith("STORE cannot be written") for text in share.warnings)
        assert str(tmp_path) not in "".join(share.warnings)


def test_a_device_trains_the_network_of_its_own_with_its_own_batch_size(tmp_path: Path):
    own = {"model": "{name: convnet, depth: 1, width: 4}", "batch-size": 8, "device": "cpu"}
    nodes = [{"partition-id": 0}, {"partition-id": 1, **own}, {"partition-id": 2}]
    models = (
        CONFIG.teacher_model(0),
        config_file.read_model(str(own["model"]), ""),
        CONFIG.teacher_model(0),
    )
    strategy, _ = start(replace(CONFIG, model=models), lambda *_: grid_of(*nodes))
    assert strategy.failures == {}
    adopted, _ = start(CONFIG, lambda *_: grid_of(*nodes))  # the config follows the device
    assert adopted.sets[1].sha256 == strategy.sets[1].sha256
    backbones = replace(CONFIG.teacher, backbones=(CONFIG.teacher_model(0),))
    refused, _ = start(replace(CONFIG, teacher=backbones), lambda *_: grid_of(*nodes))
    assert "the node config's model is convnet" in refused.failures[1].splitlines()[-1]
    assert_full(refused.sets[1], 1)


# Tests at home


TESTED = tiny_config(
    partition={"clients": 3},
    evaluate={"at": "clients"},
    baselines=["hard_label", "random"],
    student={"seeds": 2},
    federation={"min_clients": 1},
)


def test_what_devices_find_together_is_what_the_server_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(processes.MARK, "here")
    found = runner.run(TESTED, tmp_path / "clients", "local")
    here = replace(TESTED, evaluate=replace(TESTED.evaluate, at="server"))
    wanted = runner.run(here, tmp_path / "server", "local")
    images = len(data.load(TESTED.data).test)
    rows = [found["sets"]["1"]["students"]["convnet"], *found["sets"]["1"]["baselines"].values()]
    others = [
        wanted["sets"]["1"]["students"]["convnet"],
        *wanted["sets"]["1"]["baselines"].values(),
    ]
    assert len(rows) == 3
    for row, other in zip(rows, others, strict=True):
        assert row["tested_on"] == {"images": images, "devices": 3}
        assert row["top1"] == other["top1"]
        assert "tested_on" not in other
    assert (found["evaluated_on"], wanted["evaluated_on"]) == ("clients", "test")
    assert found["teachers"]["top1"] == [None] * 3
    assert found["bytes"]["evaluation"]["down"] > 3 * 3 * 2 * 4 * 1000
    assert found["bytes"]["up"] == wanted["bytes"]["up"]


def test_a_device_that_tests_badly_is_left_out_of_the_tests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(processes.MARK, "here")
    real = client_app.examine

    def lying(config: Config, spec: Any, held_out: ImageSet, *args: Any, **options: Any) -> Any:
        counts = real(config, spec, held_out, *args, **options)
        if len(held_out) == 120 and int(held_out.labels[0]) == first:
            return replace(counts, correct=tuple(tuple([10**9] * 10) for _ in counts.correct))
        return counts

    labels = data.load(TESTED.data).test.labels
    first = int(labels[0])
    assert len({int(labels[n]) for n in range(3)}) == 3
    monkeypatch.setattr(client_app, "examine", lying)
    result = runner.run(TESTED, tmp_path / "run", "local")
    assert result["sets"]["1"]["students"]["convnet"]["tested_on"] == {"images": 240, "devices": 2}
    assert result["absent_clients"] == []


def test_where_nobody_keeps_images_for_tests_the_run_says_so(tmp_path: Path):
    folders = shards(tmp_path / "own")
    strategy, _ = start(CONFIG, lambda *_: grid_of(*({"data": str(it)} for it in folders)))
    with pytest.raises(ClientsFailed, match="no device keeps images for tests"):
        require_testers(strategy.descriptions)
