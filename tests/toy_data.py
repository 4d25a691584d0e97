"""Small data sets on disk, in every layout that is read."""

from io import BytesIO
from pathlib import Path

import datasets
import pytest
from PIL import Image

from fedistill import data
from fedistill.config import DataConfig
from fedistill.errors import DataError


def picture(value: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (value, value // 2, 0)).convert(mode)


def class_folders(root: Path, mode: str = "RGB", classes: str = "ab", count: int = 4) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(40 * number + i, mode).save(folder / f"{i}.png")
    return root


def encoded(value: int) -> dict[str, object]:
    file = BytesIO()
    picture(value).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def tables(
    root: Path, labels: dict[str, list[object]], kind: object, column: str = "label"
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, found in labels.items():
        rows = {"img": [encoded(10 * i) for i in range(len(found))], column: found}
        features = datasets.Features({"img": datasets.Image(), column: kind})
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def load(folder: Path | str, seed: int = 0, **options: object) -> data.Data:
    return data.load(DataConfig(name=str(folder), **options), seed)


def message_of(folder: Path | str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, **options)
    return str(caught.value)


# What is found
