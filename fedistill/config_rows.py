"""The sections of a config that say what a set is compared with, and where it is tested."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedistill.rules import STRICT, at_least, check

Baseline = Literal[
    "random", "herding", "k_center", "hard_label", "ensemble", "weight_average", "fedavg",
    "full_data",
]  # fmt: skip
CORESETS = ("random", "herding", "k_center")  # sets of real images, made by distillers so named
NEED_TEACHERS = ("herding", "k_center", "ensemble", "weight_average")  # on the server
NEED_TRAINING_IMAGES = (*CORESETS, "full_data")  # on the server
TESTED_ON_SERVER = ("ensemble", "weight_average", "fedavg")  # for they are no students of a set


@dataclass(frozen=True, kw_only=True)
class FedAvgConfig:
    """The baseline `fedavg`: how long the clients' `model` is trained by federated averaging.

    `epochs` is what each client trains in one round, with the teachers' recipe otherwise; left
    out, as many as a teacher, so that the first round is what papers call one-shot FedAvg.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    rounds: int = 5
    epochs: int | None = None

    def __post_init__(self) -> None:
        check(at_least(self, 1, "rounds", "epochs"))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Where students are tested.

    at: `server`, on its test split; `clients`: every device tests them on images that it has
    kept for that, and tells how many were right.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    at: Literal["server", "clients"] = "server"
