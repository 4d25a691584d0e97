"""The sections of a config that say which images there are, and who holds which."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedistill.rules import STRICT, Rule, above_zero, at_least, below_one, check, part

DEVICES = "devices"  # the name of data that the devices alone have


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images.

    `name` is digits, mnist, cifar10, cifar100, a hub name, a folder of parquet files, or a
    folder of class folders. `fraction` keeps that share of every class of the training split.
    `validation` holds out that share of the training split and tests on it instead of on the
    test split: use it for tuning. `size` resizes every image to that many pixels a side.
    `flip` says whether a mirrored image keeps its class; left out, the data set decides.
    `zca` whitens what networks see (fitted on the training split) in place of mean and std.
    With the name `devices` the server has no images: each device has its own, and `classes`,
    `size` and `channels` (1 grey, 3 colour) say which of them are asked for, and how.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: str = "digits"
    fraction: float = 1.0
    validation: float = 0.0
    size: int | None = None
    flip: bool | None = None
    zca: bool = False
    classes: tuple[str, ...] = ()
    channels: int | None = None

    def __post_init__(self) -> None:
        check(
            *(self._rules_of_devices() if self.name == DEVICES else self._rules_of_the_server()),
            at_least(self, 4, "size"),
            part(self, "fraction"),
            below_one(self, "validation"),
        )

    def _rules_of_devices(self) -> list[Rule]:
        """Rules: the config says what no image of the server's says."""
        kept = {"fraction": 1.0, "validation": 0.0, "zca": False}
        changed = [key for key, value in kept.items() if getattr(self, key) != value]
        return [
            (
                len(self.classes) > 1
                and len(set(self.classes)) == len(self.classes)
                and all(name.strip() and name.isprintable() for name in self.classes),
                f"classes is {list(self.classes)} and name is {DEVICES}; accepted: two or more "
                "names, each of them once",
            ),
            (self.size is not None, f"size is missing and name is {DEVICES}; give it a value"),
            (
                self.channels in (1, 3),
                f"channels is {self.channels} and name is {DEVICES}; accepted: 1 or 3",
            ),
            (
                not changed,
                f"{', '.join(changed)} is given and name is {DEVICES}: the server has no images "
                "to choose from; remove it",
            ),
        ]

    def _rules_of_the_server(self) -> list[Rule]:
        odd = [key for key in ("classes", "channels") if getattr(self, key)]
        return [
            (
                not odd,
                f"{', '.join(odd)} has no meaning for data '{self.name}', whose images say so; "
                f"remove it, or set name: {DEVICES}",
            )
        ]


_PARTITION_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.5},
    "pathological": {"classes_per_client": 2},
    "shards": {"shards_per_client": 2},
    "quantity": {"alpha": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the training split is dealt to the clients.

    `alpha` is for dirichlet and quantity (default 0.5), `classes_per_client` for pathological (2),
    `shards_per_client` for shards (2).
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: Literal["iid", "dirichlet", "pathological", "shards", "quantity"] = "iid"
    clients: int = 5
    alpha: float | None = None
    classes_per_client: int | None = None
    shards_per_client: int | None = None
    min_samples: int = 1

    def __post_init__(self) -> None:
        own = _PARTITION_OPTIONS[self.name]
        others = {key for keys in _PARTITION_OPTIONS.values() for key in keys} - own.keys()
        odd = sorted(key for key in others if getattr(self, key) is not None)
        for key, value in own.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        check(
            (not odd, f"{', '.join(odd)} has no meaning for partition '{self.name}'; remove it"),
            at_least(self, 1, "clients", "classes_per_client", "shards_per_client", "min_samples"),
            above_zero(self, "alpha"),
        )
