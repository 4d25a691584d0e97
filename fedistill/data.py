"""Load a data set as two uint8 tensors with labels, and what a method must know about it.

`sources.py` finds the images, `decoding.py` decodes them, once: `image_cache.py` keeps them. A
whitening is fitted once and kept beside them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedistill import decoding, image_cache, sources, whitening
from fedistill.config import DEVICES, DataConfig
from fedistill.errors import DataError
from fedistill.image_cache import Splits
from fedistill.images import DataSpec, ImageSet
from fedistill.seeding import generator
from fedistill.sources import HUB_NAMES, some
from fedistill.store import Artefact, Store

# Mean and standard deviation of the training images, as published code uses them.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_SHORT_NAMES = {hub_name: name for name, hub_name in HUB_NAMES.items()}
_NOT_MIRRORED = ("mnist", "digit", "svhn")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """A data set, ready for use.

    Attributes:
        spec: what all its images have in common.
        train: the training split, or what the config keeps of it.
        test: the test split, or the held-out share of the training split.
        fingerprint: SHA-256 of the tensors and the class names.
    """

    spec: DataSpec
    train: ImageSet
    test: ImageSet
    fingerprint: str


def load(config: DataConfig, seed: int = 0) -> Data:
    """Load the training split and the split to test on.

    The first call decodes every image, and fits a whitening if one is wanted; later ones read
    the cache.

    Args:
        config: which images. `validation` is held out before `fraction` is kept.
        seed: draws the held-out and the kept images, class by class.

    Raises:
        DataError: the data set is missing, broken, or not a set of square images with labels, or
            its images are too large to be whitened.
    """
    found = splits(config, needed=sources.SPLITS)
    _require_every_class(found, config.name)
    spec = _spec(config, found, _levels(found.train_images))
    train, test = found.train, found.test
    if config.validation > 0:
        stream = generator(seed, "validation")
        held_out = draw(train.labels, config.validation, stream, least=0, left=1)
        if not held_out.any():
            raise DataError(
                f"data.validation is {config.validation}, which is not one of the {len(train)} "
                "training images; raise it"
            )
        train, test = train.select(~held_out), train.select(held_out)
    if config.fraction < 1:
        stream = generator(seed, "fraction")
        train = train.select(draw(train.labels, config.fraction, stream, least=1, left=0))
    used = Splits(spec.class_names, train.images, train.labels, test.images, test.labels)
    fingerprint = used.fingerprint()
    if config.zca:
        spec = replace(spec, zca=_whitening(train.images, fingerprint))
    return Data(spec, train, test, fingerprint)


def load_server(config: DataConfig, seed: int = 0) -> Data:
    """Load what the server of a deployment has: perhaps a test split alone, perhaps nothing.

    Without a training split `train` is empty, and the spec is good enough to ask the devices for
    their pixel levels (`spec_from`).

    Args:
        config: which images; `devices`: none.
        seed: as for `load`.

    Raises:
        DataError: as for `load`, or what is asked for takes training images.
    """
    found = None
    if config.name != DEVICES:
        found = splits(config, needed=("test",))
        if len(found.train):
            return load(config, seed)
    wanted = [key for key in ("validation", "zca") if getattr(config, key)]
    if wanted:
        raise DataError(
            f"data.{wanted[0]} is {getattr(config, wanted[0])}, which takes training images, and "
            "the server has none; leave it out"
        )
    spec = spec_from(config, found)
    empty = torch.empty(0, spec.channels, spec.size, spec.size, dtype=torch.uint8)
    none = ImageSet(empty, torch.empty(0, dtype=torch.int64))
    test = found.test if found else none
    used = Splits(spec.class_names, none.images, none.labels, test.images, test.labels)
    return Data(spec, none, test, used.fingerprint())


def _whitening(images: Tensor, fingerprint: str) -> whitening.Whitening:
    """Fit a whitening to the training split, or read what was fitted to it before."""
    size = images[0].numel()
    if size > whitening.LARGEST:
        raise DataError(
            f"data.zca is true and an image holds {size} numbers, so that the whitening would take "
            f"{4e-9 * size**2:.1f} GB; accepted: up to {whitening.LARGEST} numbers; set data.size, "
            "or data.zca to false"
        )

    def fit() -> Artefact:
        _log.info("fitting a whitening to %s images", len(images))
        found = whitening.fit(images)
        return Artefact({"mean": found.mean, "matrix": found.matrix}, {})

    key = {"data": fingerprint, "eps": whitening.EPS}
    return whitening.Whitening(**Store(image_cache.folder()).recall("whitening", key, fit).tensors)


def draw(labels: Tensor, share: float, stream: torch.Generator, *, least: int, left: int) -> Tensor:
    """Draw a share of every class: at least `least` images, and `left` not drawn; bool [M]."""
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        count = min(max(round(share * len(members)), least), len(members) - left)
        drawn[members[torch.randperm(len(members), generator=stream)[:count]]] = True
    return drawn


def splits(config: DataConfig, needed: Sequence[str] = ()) -> Splits:
    """Load all images of a data set as they are; the first call decodes them.

    Args:
        config: `name` and `size` say which.
        needed: the splits without which it is of no use.

    Raises:
        DataError: a needed split is missing or empty, or the data set is missing or broken.
    """
    if config.name == DEVICES:
        raise DataError(
            f"data.name is {DEVICES}, so that there are no images here; give a folder, or one of "
            f"{', '.join(['digits', *HUB_NAMES])}"
        )
    if config.name == "digits":
        return _decode(config, needed)
    path = image_cache.path_of(config.name, config.size)
    found = image_cache.read(path)
    if found is None:
        found = _decode(config, needed)
        image_cache.write(path, found)
    for split in needed:
        if not len(getattr(found, split)):
            sources.find(config.name, needed)  # which says what there is in its place
            _refuse_empty(config.name, split)
    return found


def spec_from(
    config: DataConfig, test: Splits | None, pixels: Sequence[Sequence[Sequence[int]]] = ()
) -> DataSpec:
    """Return the spec of a data set whose training images are with the devices alone.

    Mean and standard deviation come from the sum of the devices' pixel levels: bit for bit what
    `load` finds in the union of their images.

    Args:
        config: names the data set. For `devices` it names the classes, and says what size and how
            many channels the images have.
        test: the server's test split, which says so for any other data set.
        pixels: of each device, how often its images have each level in each channel,
            [channels][256]. None yet: mean and standard deviation are 0 and 1, which is good
            enough to ask for them.
    """
    if test is None:
        assert config.size is not None and config.channels is not None  # noqa: PT018
        empty = torch.empty(0, config.channels, config.size, config.size, dtype=torch.uint8)
        labels = torch.empty(0, dtype=torch.int64)
        test = Splits(config.classes, empty, labels, empty, labels)
    levels = torch.zeros(test.test_images.shape[1], 256, dtype=torch.int64)
    for device in pixels:
        levels += torch.tensor(device, dtype=torch.int64)
    return _spec(config, test, levels)


def pixel_levels(images: Tensor) -> tuple[tuple[int, ...], ...]:
    """Count how often uint8 images [M, C, H, W] have each level in each channel, [C][256]."""
    return tuple(tuple(row) for row in _levels(images).tolist())


def _spec(config: DataConfig, found: Splits, levels: Tensor) -> DataSpec:
    channels, size = found.test_images.shape[1:3]
    folder = None
    if config.name not in ("digits", DEVICES):
        folder = sources.local_folder(config.name)
    place = folder.name if folder else config.name.split("/")[-1]
    name = _SHORT_NAMES.get(config.name, place)
    known = _STATISTICS.get(name) if folder is None and name in HUB_NAMES else None
    mean, std = known or _statistics(levels)
    mirrored = channels == 3 and not any(word in name.lower() for word in _NOT_MIRRORED)
    return DataSpec(
        name=name,
        class_names=found.class_names,
        channels=channels,
        size=size,
        mean=mean,
        std=std,
        flip=mirrored if config.flip is None else config.flip,
    )


def _levels(images: Tensor) -> Tensor:
    """Count the pixel levels of each channel, int64 [C, 256]."""
    channels = images.unbind(1)
    return torch.stack([torch.bincount(it.flatten(), minlength=256) for it in channels])


def _statistics(levels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in [0, 1], from its pixel levels."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for counts in levels:
        total = int(counts.sum())
        if total == 0:
            means.append(0.0)
            stds.append(1.0)
            continue
        share = counts.double() / total
        mean = (share * values).sum()
        std = (share * (values - mean).square()).sum().sqrt()
        means.append(round(float(mean), 4))
        # A channel that is the same everywhere must not divide by zero.
        stds.append(max(round(float(std), 4), 1e-3))
    return tuple(means), tuple(stds)


def _decode(config: DataConfig, needed: Sequence[str]) -> Splits:
    """Decode all splits, give them the same channels, and turn labels into numbers."""
    source = sources.find(config.name, needed)
    sizes: dict[tuple[int, int], str] = {}
    train, train_found = decoding.decode(source.train, config.size, sizes)
    test, test_found = decoding.decode(source.test, config.size, sizes)
    for split, found in (("train", train_found), ("test", test_found)):
        if not found and split in needed:
            _refuse_empty(source.place, split)
    if not train_found and not test_found:
        raise DataError(f"{source.place} holds no images; {sources.LAYOUTS}")
    names = source.class_names or sources.names_of(train_found or test_found)
    batches = (*train, *test)
    channels = 3 if any(images.shape[1] == 3 for images in batches) else 1
    empty = batches[0][:0]
    return Splits(
        names,
        decoding.join(train or [empty], channels),
        sources.numbers(train_found, names, f"{source.place}: the training split"),
        decoding.join(test or [empty], channels),
        sources.numbers(test_found, names, f"{source.place}: the test split"),
    )


def _refuse_empty(place: str, split: str) -> None:
    name = {"train": "training"}.get(split, split)
    raise DataError(f"{place}: the {name} split is empty; add images to it")


def _require_every_class(found: Splits, place: str) -> None:
    counts = torch.bincount(found.train_labels, minlength=len(found.class_names)).tolist()
    empty = [name for name, count in zip(found.class_names, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{place}: no training image of class {some(empty)}; every class needs one; "
            "add images or remove the class"
        )
