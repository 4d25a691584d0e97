"""Find what a data set's name stands for: its classes, and its images still encoded.

A name is `digits` (bundled with scikit-learn), a folder of parquet files, a folder of class
folders (`train/<class>/*.png`), or a data set on the Hugging Face hub. Columns and test split
are looked for, not assumed. `data.py` decodes what is found here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedistill.errors import DataError

HUB_NAMES = {
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
_HUB_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SPLITS = ("train", "test")
_TEST_SPLITS = ("test", "validation", "valid", "val")
_LABEL_COLUMNS = ("fine_label", "label", "labels", "class", "class_name", "target", "targets", "y")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
LAYOUTS = (
    "accepted: parquet files named train-* and test-*, or class folders train/CLASS/*.png "
    "and test/CLASS/*.png"
)
_BATCH = 1024

Pixels = npt.NDArray[np.uint8]


class Sample(NamedTuple):
    """One image that is not decoded yet.

    Attributes:
        where: what to call it in a message.
        data: its file, the bytes of its file, or grey pixels [H, W].
        label: the name or the number of its class; None where the data have a gap.
    """

    where: str
    data: bytes | Path | Pixels
    label: str | int | None


@dataclass(frozen=True)
class Source:
    """A data set that was found; `train` and `test` read it while one walks through, once.

    A split that it does not have is empty.

    Attributes:
        place: what to call it in a message.
        class_names: None where the labels themselves are the names.
        train: batches of samples.
        test: batches of samples.
    """

    place: str
    class_names: tuple[str, ...] | None
    train: Iterable[list[Sample]]
    test: Iterable[list[Sample]]


def local_folder(name: str) -> Path | None:
    """Return the folder that a name means, or None where it means a data set on the hub.

    Raises:
        DataError: the name is a file, or a path that does not exist.
    """
    if name in HUB_NAMES:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise DataError(f"data.name is '{name}', a file; give the folder that holds it; {LAYOUTS}")
    if not _HUB_PATTERN.fullmatch(name):
        raise DataError(
            f"data.name is '{name}'; there is no such folder; accepted: digits, "
            f"{', '.join(HUB_NAMES)}, a hub name (owner/name), or an existing folder"
        )
    return None


def find(name: str, needed: Sequence[str] = SPLITS) -> Source:
    """Find a data set.

    Args:
        name: what `data.name` says.
        needed: the splits that it must have. Class folders that lie in no split are the training
            split where no other one is needed.

    Raises:
        DataError: it is missing or broken, or has no images, no labels or not the splits needed.
    """
    if name == "digits":
        return _digits()
    folder = local_folder(name)
    if folder is None:
        return _from_tables(_hub_tables(name), name, needed)
    if any(folder.rglob("*.parquet")):
        return _from_tables(_parquet_tables(folder), str(folder), needed)
    return _from_class_folders(folder, needed)


def _digits() -> Source:
    """Find scikit-learn's digits; the 80/20 split is stratified, with the fixed seed 0."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    samples = [
        Sample(f"digits, image {number}", image, int(label))
        for number, (image, label) in enumerate(zip(pixels, found.target, strict=True))
    ]
    train, test = train_test_split(samples, test_size=0.2, stratify=found.target, random_state=0)
    return Source("digits", tuple("0123456789"), [train], [test])


def _hub_tables(name: str) -> Mapping[str, Any]:
    import datasets
    from huggingface_hub import constants, get_session

    hub_name = HUB_NAMES.get(name, name)
    try:
        if not constants.HF_HUB_OFFLINE:
            # Fail at once where there is no network: the library retries for half a minute.
            get_session().head(constants.ENDPOINT, timeout=10)
        return dict(datasets.load_dataset(hub_name))
    except Exception as error:  # anything from httpx.ConnectError to ValueError
        there_is = "" if name in HUB_NAMES else "there is no folder of that name, and "
        where = (
            f"data.name is '{name}': {there_is}'{hub_name}' cannot be read from the Hugging Face "
            "hub"
        )
        remedy = (
            "give a local folder of its parquet files, connect to the internet, set "
            "HF_HUB_OFFLINE=1 if it has been downloaded before, or use data.name=digits, which "
            "needs no download"
        )
        raise DataError(
            f"{where} ({_first_line(error)}); {remedy}", f"{where}; {remedy}"
        ) from error


def _parquet_tables(folder: Path) -> Mapping[str, Any]:
    import datasets
    from pyarrow import ArrowException, parquet

    for path in sorted(folder.rglob("*.parquet")):
        try:
            parquet.read_metadata(path)
        except (ArrowException, OSError) as error:
            raise DataError(
                f"{path} is not a whole parquet file ({_first_line(error)}); fetch it again",
                f"{folder} holds a file that is not whole parquet; fetch it again",
            ) from error
    try:
        # Streaming: no second copy of the files in the library's own cache.
        return dict(datasets.load_dataset(str(folder), streaming=True))
    except Exception as error:  # anything from ValueError to ArrowInvalid
        raise DataError(
            f"{folder} cannot be read ({_first_line(error)}); {LAYOUTS}",
            f"{folder} cannot be read; {LAYOUTS}",
        ) from error


def _from_tables(splits: Mapping[str, Any], place: str, needed: Sequence[str]) -> Source:
    train, test = _find_splits(splits, place, needed)
    image, label, names = _find_columns(splits[train or test or ""].features or {}, place)
    found = {
        part: _rows(splits[split], f"{place}, split {split}", image, label) if split else []
        for part, split in zip(SPLITS, (train, test), strict=True)
    }
    return Source(place, names, **found)


def _find_splits(
    splits: Iterable[str], place: str, needed: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return what the training and the test split are called; None: there is none."""
    found = ", ".join(sorted(splits)) or "no folder"
    train = "train" if "train" in splits else None
    test = next((name for name in _TEST_SPLITS if name in splits), None)
    if train is None and ("train" in needed or test is None):
        raise DataError(f"{place} has no train split, only {found}; {LAYOUTS}")
    if test is None and "test" in needed:
        raise DataError(
            f"{place} has no test split, only {found}; accepted: "
            f"{', '.join(_TEST_SPLITS)}; move part of the training images to one"
        )
    return train, test


def _find_columns(
    features: Mapping[str, Any], place: str
) -> tuple[str, str, tuple[str, ...] | None]:
    """Find the image column, the label column, and the class names if the label has them."""
    import datasets

    found = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise DataError(f"{place} has no image column; found: {found}; accepted: type Image")
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if classes:
        label = next((name for name in _LABEL_COLUMNS if name in classes), classes[0])
        return images[0], label, tuple(features[label].names)
    for label in _LABEL_COLUMNS:
        kind = features.get(label)
        if isinstance(kind, datasets.Value) and re.match(r"u?int|(large_)?string", kind.dtype):
            return images[0], label, None
    raise DataError(
        f"{place} has no label column; found: {found}; accepted: type ClassLabel, or text or "
        f"whole numbers in a column called {', '.join(_LABEL_COLUMNS)}"
    )


def _rows(split: Any, place: str, image: str, label: str) -> Iterator[list[Sample]]:
    row = 0
    try:
        for table in split.with_format("arrow").iter(batch_size=_BATCH):
            cells = zip(
                table.column(image).to_pylist(), table.column(label).to_pylist(), strict=True
            )
            batch = [
                Sample(f"{place}, row {number}", _encoded(cell), found)
                for number, (cell, found) in enumerate(cells, row)
            ]
            row += len(batch)
            yield batch
    except Exception as error:  # a damaged page: ArrowInvalid, OSError, zlib.error
        raise DataError(
            f"{place}: cannot be read after row {row} ({_first_line(error)}); fetch it again",
            f"{place}: cannot be read after row {row}; fetch it again",
        ) from error


def _encoded(cell: Mapping[str, Any] | None) -> bytes | Path:
    """Return what a cell of an image column holds: bytes, or the path of a file."""
    data, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    return Path(path) if data is None and path else bytes(data or b"")


def _from_class_folders(folder: Path, needed: Sequence[str]) -> Source:
    splits = _folders(folder)
    if not {"train", *_TEST_SPLITS} & splits.keys() and "test" not in needed and splits:
        return Source(str(folder), tuple(splits), _files(splits), [])
    if not splits:
        raise DataError(f"{folder} holds no data set; found: no folder; {LAYOUTS}")
    names = _find_splits(splits, str(folder), needed)
    train, test = (_folders(splits[name]) if name else {} for name in names)
    classes = train if names[0] else test
    if not classes:
        raise DataError(f"{splits[names[0] or names[1] or '']} has no class folders; {LAYOUTS}")
    return Source(str(folder), tuple(classes), _files(train), _files(test))


def _folders(folder: Path) -> dict[str, Path]:
    """List subfolders by name, in sorted order, without hidden ones."""
    found = (path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    return {path.name: path for path in sorted(found)}


def _files(classes: Mapping[str, Path]) -> Iterator[list[Sample]]:
    samples = [
        Sample(str(path), path, name)
        for name, folder in classes.items()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    for start in range(0, len(samples), _BATCH):
        yield samples[start : start + _BATCH]


def names_of(found: list[Any]) -> tuple[str, ...]:
    """Name classes that have no names: texts by themselves, numbers by their digits."""
    numbers = [label for label in found if isinstance(label, int)]
    if numbers:
        return tuple(str(number) for number in range(max(numbers) + 1))
    return tuple(sorted({label for label in found if isinstance(label, str)}))


def numbers(found: list[Any], names: tuple[str, ...], place: str) -> Tensor:
    """Turn class names and class numbers into int64 [M].

    Raises:
        DataError: a label is neither the name nor the number of a class.
    """
    index: dict[Any, int] = {name: number for number, name in enumerate(names)}
    index |= {number: number for number in range(len(names))}
    unknown = sorted({repr(label) for label in found if label not in index})
    if unknown:
        raise DataError(
            f"{place} has labels that are no class: {some(unknown)}; accepted: the "
            f"{len(names)} classes {some(names)}; mend or remove those images"
        )
    return torch.tensor([index[label] for label in found], dtype=torch.int64)


def some(names: Iterable[str], most: int = 5) -> str:
    """List the first few names, for a message."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
