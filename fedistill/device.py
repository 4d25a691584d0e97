"""What a device is and has: its node config, its own images, and what it lets others do.

A device is a SuperNode. Its node config (`--node-config`) holds, all optional:

    data               a folder of parquet files or of class folders, a hub name, a built-in name
    partition-id       its number; with num-partitions also which part of `data` is its own
    num-partitions     into how many parts the config's `partition` deals `data`
    name               for people
    model              its own network, as YAML like the config's `model`
    device             cpu, cuda or cuda:1; left out, a GPU where there is one
    cpus               threads
    batch-size         of its teachers' training
    store              folder of its artefact store
    holdout            share of its images kept for tests, where its data have no test split
    allow-real-images  false: no method that sends images which show real ones, whatever the
                       server's config allows

Processes of our own simulations are trusted: they deal out the data of the server's config,
folders on this machine included. On a real device no path from the network is opened.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fedistill import config_file, data, partition, processes
from fedistill.config import DEVICES, Config, DataConfig, ModelConfig, PartitionConfig
from fedistill.errors import ConfigError, DataError, known_names
from fedistill.image_cache import Splits
from fedistill.images import DataSpec, ImageSet
from fedistill.seeding import generator
from fedistill.sources import HUB_NAMES, some
from fedistill.store import Store
from fedistill.training import device_for, device_named

_KINDS: Mapping[str, tuple[type, str]] = {
    "data": (str, "a text"),
    "partition-id": (int, "a whole number of 0 or more"),
    "num-partitions": (int, "a whole number of 1 or more"),
    "name": (str, "a text"),
    "model": (str, "a text of YAML"),
    "device": (str, "cpu, cuda or cuda:NUMBER"),
    "cpus": (int, "a whole number of 1 or more"),
    "batch-size": (int, "a whole number of 2 or more"),
    "store": (str, "a folder"),
    "holdout": (float, "a share of 0 to below 1"),
    "allow-real-images": (bool, "true or false"),
}
_LEAST = {"partition-id": 0, "num-partitions": 1, "cpus": 1, "batch-size": 2}
_DEVICE_NAME = re.compile(r"cpu|cuda(:\d+)?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Holding:
    """The images of a device that a run may use.

    Attributes:
        shard: to learn from.
        held_out: to test on; none of them is in the shard.
        unknown_classes: of its other images, which nobody asked for.
    """

    shard: ImageSet
    held_out: ImageSet
    unknown_classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device, as its node config says: see the top of this file.

    Attributes:
        trusted: it is a process of our own simulation.
    """

    trusted: bool = False
    data: str | None = None
    partition_id: int | None = None
    num_partitions: int | None = None
    name: str = ""
    model: ModelConfig | None = None
    device: str | None = None
    cpus: int | None = None
    batch_size: int | None = None
    store: Path | None = None
    holdout: float = 0.0
    allow_real_images: bool = True

    @classmethod
    def read(cls, node_config: Mapping[str, Any]) -> "Device":
        """Read a node config.

        Raises:
            ConfigError: with every error found.
        """
        errors = [error for key in node_config for error in _errors(key, node_config[key])]
        values = {key.replace("-", "_"): value for key, value in node_config.items()}
        number, parts = values.get("partition_id"), values.get("num_partitions")
        if parts is not None and number is None:
            errors.append("num-partitions is given and partition-id is not; give both, or neither")
        if not errors and number is not None and parts is not None and number >= parts:
            errors.append(f"partition-id is {number}; accepted: below num-partitions, {parts}")
        if not errors and "model" in values:
            try:
                values["model"] = config_file.read_model(values["model"], "model")
            except ConfigError as error:
                errors.append(str(error))
        if errors:
            lines = "".join(f"\n  - {error}" for error in errors)
            raise ConfigError(f"the node config has {len(errors)} error(s):{lines}")
        if "store" in values:
            values["store"] = Path(values["store"]).expanduser()
        ours = processes.MARK in os.environ and "data" not in values
        return cls(trusted=ours, **values)

    def images(self, config: Config, spec: DataSpec, partition_id: int) -> Holding:
        """Load the images that this device has for a run.

        Args:
            config: of the experiment.
            spec: of the server's data: its classes, by name, and the size and channels of images.
            partition_id: that the server gave this device; -1: none yet.

        Raises:
            DataError: there are none that a run could use, or none that this device may open.
            PartitionError: they cannot be dealt as the config says.
        """
        if self.trusted:
            return _part_of_the_servers(config, spec, partition_id)
        if self.data is not None:
            return self._own_images(config, spec, self.data)
        _require_no_path(config.data.name)
        number = partition_id if self.partition_id is None else self.partition_id
        parts = self.num_partitions or config.partition.clients
        if number < 0 or parts != config.partition.clients:
            raise DataError(
                f"the node config has no data, partition-id {self.partition_id} and num-partitions "
                f"{self.num_partitions}; accepted: data, or the partition-id of one of the "
                f"{config.partition.clients} parts of '{config.data.name}'"
            )
        return _part_of_the_servers(config, spec, number)

    def _own_images(self, config: Config, spec: DataSpec, name: str) -> Holding:
        try:
            found = data.splits(DataConfig(name=name, size=spec.size), needed=("train",))
            train, test, unknown = _as_asked(found, spec)
        except DataError as error:  # the device's own log tells all
            text = self.without_folders(error.told.replace("data.name is", "data is", 1))
            raise DataError(f"the data of the node config: {text}") from error
        if self.num_partitions is not None:
            assert self.partition_id is not None
            split = replace(config.partition, clients=self.num_partitions)
            parts = partition.split(train.labels, spec.num_classes, split, config.seed)
            train = train.select(parts.indices[self.partition_id])
            test = _slice(test, self.partition_id, self.num_partitions)
        if not len(test) and self.holdout > 0:
            # One draw for all messages of a run: the number that the server gives is not known yet
            # when a device describes itself.
            stream = generator(config.seed, "holdout")
            kept = data.draw(train.labels, self.holdout, stream, least=0, left=1)
            train, test = train.select(~kept), train.select(kept)
        return Holding(train, test, unknown)

    def own(self, config: Config) -> Config:
        """Return the config of an experiment as this device follows it."""
        if self.batch_size is not None:
            teacher = replace(config.teacher, batch_size=self.batch_size)
            config = replace(config, teacher=teacher)
        if self.cpus is not None:
            federation = replace(config.federation, cpus_per_client=self.cpus)
            config = replace(config, federation=federation)
        return config

    def require_model(self, config: Config, partition_id: int) -> None:
        """Refuse to train another network than this device's own, if it has one.

        Raises:
            ConfigError: the config asks for another.
        """
        wanted = set(config.teachers_of(partition_id))
        if self.model is not None and wanted != {self.model}:
            names = ", ".join(sorted(model.name for model in wanted))
            raise ConfigError(
                f"the server asks for teachers of {names}, and the node config's model is "
                f"{self.model.name}; remove it, or the server's teacher.backbones"
            )

    def require_consent(self, config: Config, method: str) -> None:
        """Refuse a method that sends images which show real ones, unless all sides allow it.

        Raises:
            ConfigError: the server's config or this device forbids it.
        """
        if self.trusted or (config.privacy.allow_real_images and self.allow_real_images):
            return
        who = (
            "the node config has allow-real-images = false"
            if config.privacy.allow_real_images
            else "privacy.allow_real_images is false"
        )
        raise ConfigError(
            f"{method} sends images that show real ones, and {who}; accepted: a method that starts "
            "from noise (sre2l), or allow it on both sides"
        )

    def place(self) -> torch.device | None:
        """Return where this device computes; None: as the experiment's config says.

        The config knows how a simulation's clients share a machine, and nothing of devices: one
        takes the GPU that it has, unless its node config says otherwise.

        Raises:
            ConfigError: it is not there.
        """
        if self.device is not None:
            return device_named(self.device)
        return None if self.trusted else device_for(1.0)

    def without_folders(self, text: str) -> str:
        """Take this device's folders out of a text for the server, who need not know where."""
        for word, folder in (("DATA", self.data), ("STORE", self.artefacts().folder)):
            for way in [] if folder is None else _ways_to_write(folder):
                text = text.replace(way, word)
        return text

    def artefacts(self) -> Store:
        """Return the store of this device."""
        return Store.from_environment() if self.store is None else Store(self.store)


def _errors(key: str, value: Any) -> list[str]:
    if key not in _KINDS:
        return [f"{key}: unknown key; {known_names(key, _KINDS)}"]
    kind, accepted = _KINDS[key]
    number = kind is float and isinstance(value, int | float)
    fits = (number or isinstance(value, kind)) and isinstance(value, bool) == (kind is bool)
    if fits and key in _LEAST:
        fits = value >= _LEAST[key]
    if fits and key == "holdout":
        fits = 0 <= value < 1
    if fits and key == "device":
        fits = _DEVICE_NAME.fullmatch(value) is not None
    if fits and key in ("data", "store"):
        fits = bool(value.strip())
    return [] if fits else [f"{key} is {value!r}; accepted: {accepted}"]


def _ways_to_write(folder: str | Path) -> list[str]:
    """Return what messages may call a folder, the longest first."""
    path = Path(folder).expanduser()
    ways = {str(folder).rstrip("/"), *map(str, (path, path.absolute(), path.resolve()))}
    return sorted((way for way in ways if "/" in way and way != "/"), key=len, reverse=True)


def _require_no_path(name: str) -> None:
    """Refuse a name from the network that a folder of this machine could answer to.

    Raises:
        DataError: it is one.
    """
    remedy = "set data in the node config"
    if name == DEVICES:
        raise DataError(
            f"the server has no images for its devices, and this one has none; {remedy}"
        )
    if name == "digits" or name in HUB_NAMES:
        return
    if _HUB_NAME.fullmatch(name) is None or Path(name).exists():
        raise DataError(
            f"the server's data.name is no built-in name ({', '.join(['digits', *HUB_NAMES])}) and "
            f"no name of a data set on the hub, and a device opens no path of another's; {remedy}"
        )


def _part_of_the_servers(config: Config, spec: DataSpec, number: int) -> Holding:
    # The whitening comes with the request: a client could not fit it to the others' images.
    chosen = replace(config.data, zca=False)
    loaded = _loaded(chosen, config.seed)
    assert loaded.spec.class_names == spec.class_names
    parts = _partitioned(chosen, config.partition, config.seed)
    if not 0 <= number < parts.num_partitions:
        raise DataError(
            f"there is no part {number} of '{config.data.name}'; accepted: 0 to "
            f"{parts.num_partitions - 1}"
        )
    held_out = _slice(loaded.test, number, config.partition.clients)
    return Holding(loaded.train.select(parts.indices[number]), held_out)


# An actor of a simulation serves many messages, and in a sweep many federations.
@lru_cache(maxsize=1)
def _loaded(config: DataConfig, seed: int) -> data.Data:
    return data.load(config, seed)


@lru_cache(maxsize=8)
def _partitioned(config: DataConfig, split: PartitionConfig, seed: int) -> partition.Partition:
    loaded = _loaded(config, seed)
    return partition.split(loaded.train.labels, loaded.spec.num_classes, split, seed)


def _slice(images: ImageSet, number: int, parts: int) -> ImageSet:
    return ImageSet(images.images[number::parts], images.labels[number::parts])


def _as_asked(found: Splits, spec: DataSpec) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Give a device's images the server's channels and labels.

    Returns:
        Both splits, without images of classes that nobody asked for, and those classes' names.
    """
    channels = found.train_images.shape[1]
    if channels > spec.channels:
        raise DataError(
            f"its images have {channels} channels and the server asks for {spec.channels}; "
            "accepted: grey images; convert them"
        )
    asked = {name: label for label, name in enumerate(spec.class_names)}
    held = found.train.histogram(len(found.class_names))
    names = [name for name, count in zip(found.class_names, held, strict=True) if count]
    if not asked.keys() & set(names):
        raise DataError(
            f"it holds the classes {some(names)}, and the server asks for "
            f"{some(spec.class_names)}: they have none in common; name the classes alike"
        )
    label_of = torch.tensor([asked.get(name, -1) for name in found.class_names])
    splits = []
    for split in (found.train, found.test):
        labels = label_of[split.labels]
        images = split.images.expand(-1, spec.channels, -1, -1)
        splits.append(ImageSet(images[labels >= 0], labels[labels >= 0]))
    train, test = splits
    return train, test, tuple(name for name in names if name not in asked)
