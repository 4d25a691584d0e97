"""One data set on disk as a server has it, and its parts as devices have them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from fedistill import data, partition
from fedistill.config import Config, DataConfig
from fedistill.images import ImageSet


def write_folders(folder: Path, images: ImageSet, names: Sequence[str]) -> None:
    """Write class folders whose files sort in the order of the images."""
    for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        path = folder / names[int(label)] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(0).numpy()).save(path)


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
        write_folders(folder / split, images.select(torch.tensor(chosen)), digits.spec.class_names)


def write_parts(folder: Path, config: Config) -> list[Path]:
    """Write the part that each client of a simulation has, as a folder of its own."""
    loaded = data.load(config.data, config.seed)
    parts = partition.split(
        loaded.train.labels, loaded.spec.num_classes, config.partition, config.seed
    )
    folders = []
    for number, index in enumerate(parts.indices):
        folders.append(folder / f"device-{number}")
        write_folders(folders[-1], loaded.train.select(index), loaded.spec.class_names)
    return folders
