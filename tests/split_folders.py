"""One data set on disk as a server has it, and its parts as devices have them."""

from pathlib import Path

import torch
from fakes import write_class_folders

from fedistill import data, partition
from fedistill.config import Config, DataConfig


def write_central(folder: Path, each: int = 30) -> None:
    """Write some of the digits: so many training images of each class, and a third for tests."""
    digits = data.load(DataConfig(name="digits"))
    for split, images, count in (
        ("train", digits.train, each),
        ("test", digits.test, each // 3),
    ):
        chosen = [
            index
            for label in range(10)
            for index in (images.labels == label).nonzero().flatten()[:count].tolist()
        ]
        write_class_folders(
            folder / split, images.select(torch.tensor(chosen)), digits.spec.class_names
        )


def write_parts(folder: Path, config: Config) -> list[Path]:
    """Write the part that each client of a simulation has, as a folder of its own."""
    loaded = data.load(config.data, config.seed)
    parts = partition.split(
        loaded.train.labels, loaded.spec.num_classes, config.partition, config.seed
    )
    folders = []
    for number, index in enumerate(parts.indices):
        folders.append(folder / f"device-{number}")
        write_class_folders(folders[-1], loaded.train.select(index), loaded.spec.class_names)
    return folders
