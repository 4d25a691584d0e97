"""The config as one frozen tree of dataclasses; `config_file.py` reads and writes it.

Plain dataclasses, so that the method runs where only torch is installed. Each section checks
its own values; what a section leaves at None is filled in when the file is read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from fedistill.config_clients import DistillConfig, ModelConfig, RegularizerConfig, TeacherConfig
from fedistill.config_data import DEVICES, DataConfig, PartitionConfig
from fedistill.config_students import (
    CORESETS,
    NEED_TEACHERS,
    NEED_TRAINING_IMAGES,
    TESTED_ON_SERVER,
    Baseline,
    EvaluateConfig,
    FedAvgConfig,
    Protocol,
    Schedule,
    StudentConfig,
)
from fedistill.config_sweep import SweepConfig
from fedistill.rules import STRICT, Rule, above_zero, areas, at_least, below_one, check, share

__all__ = [
    "DEVICES",
    "STRICT",
    "Baseline",
    "Config",
    "CotrainConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FedAvgConfig",
    "FederationConfig",
    "ModelConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "Protocol",
    "RegularizerConfig",
    "RelabelConfig",
    "Schedule",
    "StudentConfig",
    "SweepConfig",
    "TeacherConfig",
    "TrackingConfig",
]


ASK_ALL = ("mean", "consensus")  # ways to label in which every teacher answers for every view


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    """How random views of the integrated set are labelled.

    name: `mix` draws a random teacher for every view of every image (Distributed Boosting);
    `own` asks the teacher of the client that made the image; `single` asks the teacher
    with the lowest partition id for all; `mean` averages the logits of all teachers; `consensus`
    averages their probabilities, for every view with those weights of the clients that agree with
    who has seen what (`fusion.py`).
    A client with several teachers answers with the mean of their logits.
    at: `server` collects the teachers and labels there; `clients` leaves them at home, sends
    the set to every client and collects logits.
    teacher_choice: `uniform`, or `coverage`: `mix` draws teachers in proportion to how many real
    images of the image's class each was trained on; `mean` averages log-probabilities, each
    class's weighted by how many of its images each teacher was trained on; `consensus` finds its
    weights from the same counts, and has equal ones without them.
    `prior_correction` takes the log of its own class prior from each teacher's logits
    (`answers.py`). Left out, all three follow `partition` (`protocols.py`).
    The view keys left out come from the student protocol. With `tiles` 2, a share `tile_share`
    of the views shows one quarter of the image: a mosaic's single images.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: Literal["mix", "own", "single", "mean", "consensus"] | None = None
    views: int | None = None
    at: Literal["server", "clients"] = "server"
    teacher_choice: Literal["uniform", "coverage"] | None = None
    prior_correction: bool | None = None
    scale: tuple[float, float] | None = None
    shift: int | None = None
    flip: bool | None = None
    tiles: int | None = None
    tile_share: float | None = None
    mix: Literal["cutmix", "mixup", "none"] | None = None
    mix_alpha: float | None = None
    mix_probability: float | None = None

    def __post_init__(self) -> None:
        check(
            at_least(self, 0, "shift"),
            at_least(self, 1, "views", "tiles"),
            above_zero(self, "mix_alpha"),
            areas("scale", self.scale or (1.0, 1.0)),
            share(self, "mix_probability", "tile_share"),
            (
                self.teacher_choice != "coverage" or self.name in ("mix", *ASK_ALL, None),
                f"teacher_choice is coverage and name is {self.name}, which has no choice of "
                "teachers; accepted: name: mix, mean or consensus, or teacher_choice: uniform",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class CotrainConfig:
    """How the server trains the integrated sets of several sizes again, before relabelling.

    In YAML the options of `cotrain.py` stand beside the name.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: str = "mib"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """What the federation may use, how long it waits, and who makes how many images.

    A run waits `wait_s` for its nodes, and `deadline_s` for the answers of each stage. A deployment
    then begins with those that have come, if they are `min_clients`.
    dropout: that share of a simulation's clients, drawn by the seed, dies before it has delivered.
    slots: `even` deals the images of a class evenly to the clients that hold it, `histogram` in
    proportion to how many real ones of it each holds (`slots.py`).
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    min_clients: int = 1
    slots: Literal["even", "histogram"] = "even"
    wait_s: float = 120.0
    deadline_s: float = 3600.0
    dropout: float = 0.0
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0

    def __post_init__(self) -> None:
        check(
            at_least(self, 0, "gpus_per_client"),
            at_least(self, 1, "min_clients", "cpus_per_client"),
            above_zero(self, "wait_s", "deadline_s"),
            below_one(self, "dropout"),
        )


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What may leave a real device; a simulation's clients are no devices.

    `allow_real_images` lets devices send images that show real ones, for the methods that make
    such (README.md, Methods). A device may still forbid it in its node config.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    allow_real_images: bool = False


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow records the run; null: a sqlite store in the current folder."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    enabled: bool = True
    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: str = "fedistill"
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    model: ModelConfig | tuple[ModelConfig, ...] = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    cotrain: CotrainConfig | None = None
    student: StudentConfig = field(default_factory=StudentConfig)
    baselines: tuple[Baseline, ...] = ()
    fedavg: FedAvgConfig = field(default_factory=FedAvgConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig | None = None

    def __post_init__(self) -> None:
        check(
            (self.model != (), "model is an empty list; accepted: one or more models"),
            (
                self.federation.min_clients <= self.partition.clients,
                f"federation.min_clients is {self.federation.min_clients} and partition.clients is "
                f"{self.partition.clients}; accepted: no more than there are",
            ),
            (
                len(set(self.baselines)) == len(self.baselines),
                f"baselines is {list(self.baselines)}; one is twice in it",
            ),
            _one_network("fedavg", self.baselines, "model", self._own_models),
            _one_network("weight_average", self.baselines, "the teachers", self.teacher_models),
            *self._rules_of_labels_at_home(),
            *self._rules_of_tests_at_home(),
            *self._rules_of_devices(),
            (
                re.fullmatch(r"[\w][\w. -]*", self.name) is not None,
                f"name is {self.name!r}; accepted: letters, digits, '_', '-', '.' and spaces "
                "(it names folders)",
            ),
        )

    def _rules_of_labels_at_home(self) -> list[Rule]:
        """Rules: nothing needs a teacher on the server when all of them stay at home."""
        if self.relabel.at == "server":
            return []
        others = [name for name in get_args(Baseline) if name not in NEED_TEACHERS]
        wanted = [name for name in self.baselines if name in NEED_TEACHERS]
        return [
            (
                not wanted,
                f"baselines holds {', '.join(wanted)}, which need the teachers on the server, and "
                f"relabel.at is clients; accepted: {', '.join(others)}, or relabel.at: server",
            ),
            (
                self.cotrain is None,
                "cotrain is given, which needs the teachers on the server, and relabel.at is "
                "clients; accepted: no cotrain, or relabel.at: server",
            ),
        ]

    def _rules_of_tests_at_home(self) -> list[Rule]:
        """Rules: what the devices test are students."""
        if self.evaluate.at == "server":
            return []
        others = [name for name in get_args(Baseline) if name not in TESTED_ON_SERVER]
        wanted = [name for name in self.baselines if name in TESTED_ON_SERVER]
        return [
            (
                not wanted,
                f"baselines holds {', '.join(wanted)}, tested on the server, and evaluate.at is "
                f"clients; accepted: {', '.join(others)}, or evaluate.at: server",
            ),
            (
                self.data.validation == 0,
                f"data.validation is {self.data.validation}, held out on the server, and "
                "evaluate.at is clients; accepted: 0, or evaluate.at: server",
            ),
        ]

    def _rules_of_devices(self) -> list[Rule]:
        """Rules: nothing needs images of the server's where it has none."""
        if self.data.name != DEVICES:
            return []
        wanted = [name for name in self.baselines if name in NEED_TRAINING_IMAGES]
        return [
            (
                self.evaluate.at == "clients",
                f"data.name is {DEVICES}, so that the server has no images to test on; accepted: "
                "evaluate.at: clients",
            ),
            (
                not wanted,
                f"baselines holds {', '.join(wanted)}, made of training images on the server, and "
                f"data.name is {DEVICES}; remove it",
            ),
            (
                not self.student.ranking,
                "student.ranking is true, which compares with real images on the server, and "
                f"data.name is {DEVICES}; set it to false",
            ),
            (
                self.sweep is None,
                f"sweep is given, which deals out the server's images, and data.name is {DEVICES}; "
                "remove it",
            ),
        ]

    @property
    def coresets(self) -> tuple[str, ...]:
        """Baselines that are sets of real images: each is a distiller's name.

        DD-Ranking's scores need random ones.
        """
        wanted = {*self.baselines, *(["random"] if self.student.ranking else [])}
        return tuple(name for name in CORESETS if name in wanted)

    def teacher_model(self, partition_id: int) -> ModelConfig:
        """Return the model of one client: a list in the config is dealt round-robin."""
        if isinstance(self.model, ModelConfig):
            return self.model
        return self.model[partition_id % len(self.model)]

    def teachers_of(self, partition_id: int) -> tuple[ModelConfig, ...]:
        """Return the network of each teacher that one client trains, in their order."""
        backbones = self.teacher.backbones or (self.teacher_model(partition_id),)
        return backbones * self.teacher.count

    @property
    def teacher_models(self) -> tuple[ModelConfig, ...]:
        """All networks that teachers have in this config."""
        return self.teacher.backbones or self._own_models

    @property
    def _own_models(self) -> tuple[ModelConfig, ...]:
        return (self.model,) if isinstance(self.model, ModelConfig) else self.model


def _one_network(
    name: str, baselines: Sequence[str], where: str, models: Sequence[ModelConfig]
) -> Rule:
    """Rule: who averages weights has networks of one kind."""
    count = len(set(models))
    return (
        name not in baselines or count <= 1,
        f"baselines: {name} averages weights, and {where} names {count} different networks; "
        f"accepted: one for all clients, or no '{name}'",
    )
