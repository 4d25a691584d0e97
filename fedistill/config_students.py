"""The sections of a config that say what a set is worth: students, their tests, rivals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedistill.config_clients import ModelConfig
from fedistill.rules import STRICT, Rule, above_zero, at_least, below_one, check

Protocol = Literal["default", "sre2l", "rded", "gvbsm", "edc", "lic", "dream"]
Schedule = Literal[
    "cosine", "half_cosine", "smoothing", "ssrs", "multistep", "two_steps", "constant"
]
ByIpc = int | dict[int, int]  # a number, or a table {ipc: number}


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """How fresh students are trained on the set and tested; keys left out: see `protocol`.

    models: names, or mappings like `model`. The bare name of the teachers' model means the
    same model as theirs. loss `kl` compares softened labels, `mse` compares logits;
    `ce_weight` adds cross-entropy on the hard labels. `epochs` and `batch_size` may be tables
    {ipc: number}, each entry for its IPC and those up to the next: small sets want more epochs.
    `zeta` is of the schedules `smoothing` and `ssrs` (EDC): the learning rate falls as a cosine
    that is `zeta` times as long as the training. `ranking` adds DD-Ranking's label-robust and
    augmentation-robust scores of the first model, and the rows of students that they take.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    models: tuple[str | ModelConfig, ...] = ("convnet",)
    seeds: int = 5
    protocol: Protocol = "default"
    epochs: ByIpc | None = None
    batch_size: ByIpc | None = None
    optimizer: Literal["adamw", "sgd"] | None = None
    lr: float | None = None
    weight_decay: float | None = None
    schedule: Schedule | None = None
    zeta: float | None = None
    loss: Literal["kl", "mse"] | None = None
    ce_weight: float | None = None
    temperature: float | None = None
    ema: float | None = None
    ranking: bool = False

    @property
    def networks(self) -> tuple[ModelConfig, ...]:
        """The models, once the file has been read: bare names have been replaced."""
        assert not any(isinstance(model, str) for model in self.models), self.models
        return tuple(model for model in self.models if isinstance(model, ModelConfig))

    def __post_init__(self) -> None:
        check(
            at_least(self, 0, "weight_decay", "ce_weight"),
            at_least(self, 1, "seeds"),
            _at_every_ipc("epochs", self.epochs),
            _at_every_ipc("batch_size", self.batch_size),
            above_zero(self, "lr", "temperature"),
            at_least(self, 1, "zeta"),
            (len(self.models) > 0, "models is empty; accepted: one or more models"),
            below_one(self, "ema"),
        )


def _at_every_ipc(key: str, value: ByIpc | None) -> Rule:
    """Rule: this value, where it is given, is 1 or more, or a table of such by such."""
    if value is None:
        numbers = [1]
    elif isinstance(value, dict):
        numbers = [*value, *value.values()]
    else:
        numbers = [value]
    accepted = "accepted: 1 or more, or a table of such by IPC: {1: 1000, 10: 300}"
    return min(numbers, default=0) >= 1, f"{key} is {value}; {accepted}"


Baseline = Literal[
    "random", "herding", "k_center", "hard_label", "ensemble", "coverage_ensemble",
    "consensus_ensemble", "weight_average", "fedavg", "full_data",
]  # fmt: skip
CORESETS = ("random", "herding", "k_center")  # sets of real images, made by distillers so named
# No set, the teachers themselves.
ENSEMBLES = ("ensemble", "coverage_ensemble", "consensus_ensemble")
NEED_TEACHERS = ("herding", "k_center", *ENSEMBLES, "weight_average")  # on the server
NEED_TRAINING_IMAGES = (*CORESETS, "full_data")  # on the server
TESTED_ON_SERVER = (*ENSEMBLES, "weight_average", "fedavg")  # for they are no students of a set


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
