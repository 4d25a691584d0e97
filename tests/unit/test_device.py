"""A device: what its node config says, which images it has, what it opens and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CONVNET, tiny_config
from PIL import Image

from fedistill import config_file, data, partition, processes, training
from fedistill.config import DataConfig
from fedistill.device import Device
from fedistill.errors import ConfigError, DataError, PartitionError
from fedistill.images import DataSpec, ImageSet

DIGITS = tiny_config(data={"name": "digits", "fraction": 1.0}, partition={"clients": 3})
SPEC = DataSpec(
    name="pets",
    class_names=("cat", "dog", "emu"),
    channels=1,
    size=8,
    mean=(0.4,),
    std=(0.2,),
    flip=False,
)


@pytest.fixture(autouse=True)
def _real_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(processes.MARK)
    monkeypatch.setenv("FEDISTILL_CACHE", str(tmp_path / "cache"))


def folder_of(root: Path, **classes: int) -> Path:
    """Class folders without a split; each image has a level of its own."""
    level = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            level += 1
            Image.fromarray(np.full((8, 8), level, np.uint8)).save(root / name / f"{number:03}.png")
    return root


def levels(images: ImageSet) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


# The node config


def test_a_node_config_is_read_whole(tmp_path: Path):
    node: dict[str, Any] = {
        "data": "/data",
        "partition-id": 1,
        "num-partitions": 3,
        "name": "ward 3",
        "model": config_file.dump_model(CONVNET),
        "device": "cuda:1",
        "cpus": 2,
        "batch-size": 16,
        "store": str(tmp_path),
        "holdout": 0,
        "allow-real-images": False,
    }
    found = Device.read(node)
    assert found == Device(
        data="/data",
        partition_id=1,
        num_partitions=3,
        name="ward 3",
        model=CONVNET,
        device="cuda:1",
        cpus=2,
        batch_size=16,
        store=tmp_path,
        holdout=0,
        allow_real_images=False,
    )
    assert found.artefacts().folder == tmp_path
    config = found.own(DIGITS)
    assert (config.teacher.batch_size, config.federation.cpus_per_client) == (16, 2)
    assert Device.read({}) == Device()
    assert Device.read({}).own(DIGITS) == DIGITS


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"dta": "/data"}, "did you mean 'data'"),
        ({"partition_id": 1}, "did you mean 'partition-id'"),
        ({"partition-id": -1}, "partition-id is -1; accepted: a whole number of 0 or more"),
        ({"partition-id": True}, "partition-id is True"),
        ({"partition-id": "1"}, "partition-id is '1'"),
        ({"num-partitions": 3}, "partition-id is not; give both"),
        ({"partition-id": 3, "num-partitions": 3}, "below num-partitions, 3"),
        ({"cpus": 0}, "cpus is 0"),
        ({"cpus": 1.5}, "cpus is 1.5"),
        ({"batch-size": 1}, "batch-size is 1"),
        ({"holdout": 1.0}, "holdout is 1.0; accepted: a share of 0 to below 1"),
        ({"holdout": "0.1"}, "holdout is '0.1'"),
        ({"device": "tpu"}, "device is 'tpu'; accepted: cpu, cuda or cuda:NUMBER"),
        ({"allow-real-images": "no"}, "accepted: true or false"),
        ({"allow-real-images": 0}, "accepted: true or false"),
        ({"model": "{name: convnet, colour: 1}"}, "colour: unknown key"),
        ({"model": "["}, "not valid YAML"),
        ({"data": " "}, "data is ' '"),
        ({"cpus": 0, "dta": 1}, "2 error"),
    ],
)
def test_a_mistake_in_a_node_config_is_named(node: dict[str, Any], says: str):
    with pytest.raises(ConfigError) as caught:
        Device.read(node)
    assert says in str(caught.value)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds 0 GPUs here; accepted: cpu"):
        Device(device="cuda:1").place()
    assert Device(device="cpu").place() == Device().place() == torch.device("cpu")


def test_a_real_device_takes_the_gpu_that_it_has_and_a_simulation_asks_the_config(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training, "_make_repeatable", lambda: None)
    assert Device().place() == torch.device("cuda")
    assert Device(device="cpu").place() == torch.device("cpu")
    assert Device(trusted=True).place() is None


# Its own images


def test_own_classes_are_mapped_by_name_and_others_are_told_of(tmp_path: Path):
    own = folder_of(tmp_path / "own", ant=1, dog=2, cat=3, yak=1)
    found = Device(data=str(own)).images(DIGITS, SPEC, -1)
    assert found.shard.histogram(3) == [3, 2, 0]
    pairs = list(zip(levels(found.shard), found.shard.labels.tolist(), strict=True))
    assert pairs == [(4, 0), (5, 0), (6, 0), (2, 1), (3, 1)]  # folders in the order of their names
    assert found.unknown_classes == ("ant", "yak")
    assert len(found.held_out) == 0


def test_labels_are_those_of_the_server_whatever_the_order_of_the_folders(tmp_path: Path):
    own = folder_of(tmp_path / "own", cat=2, dog=1, emu=1)
    turned = replace(SPEC, class_names=("emu", "cat", "dog"))
    found = Device(data=str(own)).images(DIGITS, turned, -1).shard
    assert list(zip(levels(found), found.labels.tolist(), strict=True)) == [
        (1, 1), (2, 1), (3, 2), (4, 0),
    ]  # fmt: skip


def test_no_class_in_common_is_an_error(tmp_path: Path):
    own = folder_of(tmp_path / "own", Cat=1, Dog=1)
    with pytest.raises(DataError, match=r"holds the classes Cat, Dog.*asks for cat, dog, emu"):
        Device(data=str(own)).images(DIGITS, SPEC, -1)


def test_grey_images_are_expanded_and_coloured_ones_are_refused(tmp_path: Path):
    own = folder_of(tmp_path / "own", cat=2, dog=2)
    coloured = replace(SPEC, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3)
    found = Device(data=str(own)).images(DIGITS, coloured, -1).shard.images
    assert found.shape == (4, 3, 8, 8)
    assert torch.equal(found[:, 0], found[:, 2])
    Image.new("RGB", (8, 8), (9, 0, 0)).save(own / "cat" / "000.png")
    with pytest.raises(DataError, match="its images have 3 channels and the server asks for 1"):
        Device(data=str(own)).images(DIGITS, SPEC, -1)


def test_images_are_resized_to_what_the_server_asks_for(tmp_path: Path):
    own = folder_of(tmp_path / "own", cat=2, dog=2)
    small = replace(SPEC, size=4)
    assert Device(data=str(own)).images(DIGITS, small, -1).shard.images.shape == (4, 1, 4, 4)


def test_data_that_are_not_there_are_named_by_their_key(tmp_path: Path):
    with pytest.raises(DataError, match=r"of the node config: data is 'DATA'; there is no"):
        Device(data="/no/such").images(DIGITS, SPEC, -1)
    (tmp_path / "own" / "cat").mkdir(parents=True)
    (tmp_path / "own" / "cat" / "0.png").write_bytes(b"secret")
    with pytest.raises(DataError, match="cannot be read: 1 of class 'cat'; mend") as caught:
        Device(data=str(tmp_path / "own")).images(DIGITS, SPEC, -1)
    assert "secret" not in str(caught.value)
    assert "0.png" not in str(caught.value)


@pytest.mark.parametrize("name", ["~/scans", "/link/", "near/scans", "own"])
def test_no_way_to_write_its_folder_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "near").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own" / "train").mkdir(parents=True)
    for link in ("scans", "link", "near/scans"):
        (tmp_path / link).symlink_to(tmp_path / "own")
    device = Device(data=f"{tmp_path}{name}" if name.startswith("/") else name)
    with pytest.raises(DataError, match="config: DATA/train has no class folders") as caught:
        device.images(DIGITS, SPEC, -1)
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "own" / "Doe.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="config: DATA holds a file that is not whole") as caught:
        device.images(DIGITS, SPEC, -1)
    assert "Doe" not in str(caught.value)


def test_a_share_of_the_images_is_held_out_and_never_part_of_the_shard(tmp_path: Path):
    own = folder_of(tmp_path / "own", cat=20, dog=10, emu=1)
    device = Device(data=str(own), holdout=0.3)
    found = device.images(DIGITS, SPEC, -1)
    assert found.held_out.histogram(3) == [6, 3, 0]
    assert sorted(levels(found.shard) + levels(found.held_out)) == list(range(1, 32))
    later = device.images(DIGITS, SPEC, 4)  # once it has a number, it is the same draw
    assert levels(later.held_out) == levels(found.held_out)
    other = device.images(replace(DIGITS, seed=1), SPEC, 4)
    assert levels(other.held_out) != levels(found.held_out)


def test_a_test_split_is_held_out_in_the_place_of_a_share(tmp_path: Path):
    folder_of(tmp_path / "own" / "train", cat=4, dog=4)
    folder_of(tmp_path / "own" / "test", cat=2, dog=1)
    found = Device(data=str(tmp_path / "own"), holdout=0.5).images(DIGITS, SPEC, 0)
    assert found.shard.histogram(3) == [4, 4, 0]
    assert found.held_out.histogram(3) == [2, 1, 0]


def test_data_that_several_devices_share_are_dealt_as_the_config_says(tmp_path: Path):
    own = folder_of(tmp_path / "own", cat=9, dog=6, emu=3)
    config = tiny_config(partition={"name": "quantity", "clients": 7})
    parts = [
        Device(data=str(own), partition_id=n, num_partitions=4).images(config, SPEC, 6).shard
        for n in range(4)
    ]
    assert sorted(level for part in parts for level in levels(part)) == list(range(1, 19))
    whole = data.splits(DataConfig(name=str(own)), ("train",)).train
    wanted = partition.split(whole.labels, 3, replace(config.partition, clients=4), config.seed)
    for part, index in zip(parts, wanted.indices, strict=True):
        assert levels(part) == levels(whole.select(index))
    with pytest.raises(PartitionError):
        Device(data=str(own), partition_id=0, num_partitions=40).images(config, SPEC, 0)


def test_a_number_alone_deals_out_nothing(tmp_path: Path):
    own = folder_of(tmp_path / "own", cat=3, dog=3)
    assert len(Device(data=str(own), partition_id=2).images(DIGITS, SPEC, -1).shard) == 6


# The server's images


def test_a_part_of_a_built_in_data_set_is_that_of_a_simulation(monkeypatch: pytest.MonkeyPatch):
    spec = data.load(DIGITS.data).spec
    own = [Device(partition_id=n, num_partitions=3).images(DIGITS, spec, -1) for n in range(3)]
    monkeypatch.setenv(processes.MARK, "here")
    ours = Device.read({"partition-id": 2, "num-partitions": 3})
    assert ours.trusted
    for number, part in enumerate(own):
        same = ours.images(DIGITS, spec, number)  # by the number that the server gave it
        assert torch.equal(part.shard.images, same.shard.images)
        assert torch.equal(part.held_out.labels, same.held_out.labels)
    test = data.load(DIGITS.data).test
    assert sum(len(part.held_out) for part in own) == len(test)
    assert torch.equal(own[1].held_out.images, test.images[1::3])


def test_a_part_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(processes.MARK, "here")
    spec = data.load(DIGITS.data).spec
    for number in (-1, 3):
        with pytest.raises(DataError, match=f"no part {number} of 'digits'; accepted: 0 to 2"):
            Device.read({}).images(DIGITS, spec, number)


@pytest.mark.parametrize("device", [Device(), Device(partition_id=1, num_partitions=2)])
def test_a_device_without_data_must_know_its_part(device: Device):
    with pytest.raises(DataError, match="the partition-id of one of the 3 parts of 'digits'"):
        device.images(DIGITS, data.load(DIGITS.data).spec, -1)


@pytest.mark.parametrize("name", ["FOLDER", "folder", "../x", "/etc", "~", "a/../b", "toy/../toy"])
def test_a_device_opens_no_path_of_the_servers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder_of(tmp_path / "folder" / "train", cat=2, dog=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", None)
    name = str(tmp_path / "folder") if name == "FOLDER" else name
    config = replace(DIGITS, data=replace(DIGITS.data, name=name))
    with pytest.raises(DataError, match="set data in the node config") as caught:
        Device(partition_id=0).images(config, SPEC, 0)
    assert str(tmp_path) not in str(caught.value)


def test_a_hub_name_that_is_a_folder_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder_of(tmp_path / "owner" / "toy" / "train", cat=2)
    monkeypatch.chdir(tmp_path)
    config = replace(DIGITS, data=replace(DIGITS.data, name="owner/toy"))
    with pytest.raises(DataError, match="opens no path of another's"):
        Device(partition_id=0).images(config, SPEC, 0)


def test_where_only_devices_have_images_each_needs_its_own():
    config = tiny_config(
        data={"name": "devices", "fraction": 1.0, "classes": ["cat", "dog"], "size": 8,
              "channels": 1},
        evaluate={"at": "clients"},
    )  # fmt: skip
    with pytest.raises(DataError, match="this one has none; set data in the node config"):
        Device(partition_id=0).images(config, SPEC, 0)


# What it lets others do


@pytest.mark.parametrize(
    ("server", "device", "says"),
    [
        (False, True, "privacy.allow_real_images is false"),
        (True, False, "allow-real-images = false"),
        (False, False, "privacy.allow_real_images is false"),
    ],
)
def test_real_images_leave_only_where_both_sides_allow_it(server: bool, device: bool, says: str):
    config = tiny_config(privacy={"allow_real_images": server})
    with pytest.raises(ConfigError, match=says):
        Device(allow_real_images=device).require_consent(config, "distill.name rded")
    Device(trusted=True, allow_real_images=device).require_consent(config, "distill.name rded")


def test_both_sides_may_allow_real_images():
    config = tiny_config(privacy={"allow_real_images": True})
    Device().require_consent(config, "distill.name rded")


def test_a_device_trains_no_other_network_than_its_own():
    other = tiny_config(model={"name": "convnet", "depth": 1, "width": 4})
    own = Device(model=CONVNET)
    own.require_model(replace(other, model=CONVNET), 0)
    own.require_model(replace(other, model=(other.teacher_model(0), CONVNET)), 1)
    with pytest.raises(ConfigError, match="the node config's model is convnet"):
        own.require_model(other, 0)
    Device().require_model(other, 0)
