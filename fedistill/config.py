"""The config as one frozen tree of dataclasses; `config_file.py` reads and writes it.

Plain dataclasses, so that the method runs where only torch is installed. Each section checks
its own values; what a section leaves at None is filled in when the file is read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from fedistill.rules import Rule, above_zero, areas, at_least, below_one, check, part, share

# How pydantic reads a section, and the options of a part: no unknown keys, no nan, no infinity.
STRICT: Mapping[str, Any] = {"extra": "forbid", "strict": False, "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images.

    `name` is digits, mnist, cifar10, cifar100, a hub name, a folder of parquet files, or a
    folder of class folders. `fraction` keeps that share of every class of the training split.
    `validation` holds out that share of the training split and tests on it instead of on the
    test split: use it for tuning. `size` resizes every image to that many pixels a side.
    `flip` says whether a mirrored image keeps its class; left out, the data set decides.
    `zca` whitens what networks see (fitted on the training split) in place of mean and std.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: str = "digits"
    fraction: float = 1.0
    validation: float = 0.0
    size: int | None = None
    flip: bool | None = None
    zca: bool = False

    def __post_init__(self) -> None:
        check(
            at_least(self, 4, "size"),
            part(self, "fraction"),
            below_one(self, "validation"),
        )


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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network: convnet, wide_resnet16_2, mobilenet_v2_half, or any torchvision classifier.

    The first layer of a resnet, mobilenet_v2, shufflenet_v2 or efficientnet keeps the resolution of
    images of up to 64 pixels. `depth`, `width` and `norm` are for convnet alone; a depth left out
    follows the image size.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: str = "convnet"
    depth: int | None = None
    width: int | None = None
    norm: Literal["batch", "instance"] | None = None

    def __post_init__(self) -> None:
        only_convnet = [key for key in ("depth", "width", "norm") if getattr(self, key) is not None]
        check(
            at_least(self, 1, "depth", "width"),
            (
                self.name == "convnet" or not only_convnet,
                f"{', '.join(only_convnet)} can only be set for convnet, not for {self.name}",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Squeeze: how each client trains its teachers.

    `backbones` lists the networks that every client trains; left out, it is the client's own
    `model` alone. `count` trains that many of each, from other weights and in another order.
    `shift` pads by that many pixels and crops back at random; left out, an eighth of the image.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    count: int = 1
    backbones: tuple[ModelConfig, ...] = ()
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2
    label_smoothing: float = 0.0
    shift: int | None = None
    flip: bool | None = None

    def __post_init__(self) -> None:
        check(
            at_least(self, 0, "weight_decay", "shift"),
            at_least(self, 1, "count", "epochs"),
            at_least(self, 2, "batch_size"),
            above_zero(self, "lr"),
            below_one(self, "warmup", "momentum", "label_smoothing"),
        )


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig:
    """One extra loss term: the name of a part in `losses/`, its weight, and its own options."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: str
    weight: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How each client makes its share of the images.

    In YAML the distiller's own options stand beside these keys.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: str = "sre2l"
    ipc: tuple[int, ...] = (10,)
    regularizers: tuple[RegularizerConfig, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            (
                len(self.ipc) > 0 and all(ipc >= 1 for ipc in self.ipc),
                f"ipc is {list(self.ipc)}; accepted: one or more sizes of at least 1",
            ),
            (
                len(set(self.ipc)) == len(self.ipc),
                f"ipc is {list(self.ipc)}; a size is twice in it",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    """How random views of the integrated set are labelled.

    name: `mix` draws a random teacher for every view of every image (Distributed Boosting);
    `own` asks the teacher of the client that made the image; `single` asks the teacher
    with the lowest partition id for all; `mean` averages the logits of all teachers.
    A client with several teachers answers with the mean of their logits.
    at: `server` collects the teachers and labels there; `clients` leaves them at home, sends
    the set to every client and collects logits.
    teacher_choice: `uniform`, or `coverage`: `mix` draws teachers in proportion to how many real
    images of the image's class each was trained on; `mean` averages log-probabilities, each
    class's weighted by how many of its images each teacher was trained on.
    `prior_correction` takes the log of its own class prior from each teacher's logits
    (`answers.py`). Left out, all three follow `partition` (`protocols.py`).
    The view keys left out come from the student protocol. With `tiles` 2, a share `tile_share`
    of the views shows one quarter of the image: a mosaic's single images.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    name: Literal["mix", "own", "single", "mean"] | None = None
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
                self.teacher_choice != "coverage" or self.name in ("mix", "mean", None),
                f"teacher_choice is coverage and name is {self.name}, which has no choice of "
                "teachers; accepted: name: mix or mean, or teacher_choice: uniform",
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


Protocol = Literal["default", "sre2l", "rded", "gvbsm", "edc", "lic", "dream"]
Schedule = Literal[
    "cosine", "half_cosine", "smoothing", "ssrs", "multistep", "two_steps", "constant"
]


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """How fresh students are trained on the set and tested; keys left out: see `protocol`.

    models: names, or mappings like `model`. The bare name of the teachers' model means the
    same model as theirs. loss `kl` compares softened labels, `mse` compares logits;
    `ce_weight` adds cross-entropy on the hard labels. `batch_size` may be a table {ipc: size}.
    `zeta` is of the schedules `smoothing` and `ssrs` (EDC): the learning rate falls as a cosine
    that is `zeta` times as long as the training. `ranking` adds DD-Ranking's label-robust and
    augmentation-robust scores of the first model, and the rows of students that they take.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    models: tuple[str | ModelConfig, ...] = ("convnet",)
    seeds: int = 5
    protocol: Protocol = "default"
    epochs: int | None = None
    batch_size: int | dict[int, int] | None = None
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
        sizes = 1 if self.batch_size is None else self.batch_size
        least = min(sizes.values(), default=0) if isinstance(sizes, dict) else sizes
        check(
            at_least(self, 0, "weight_decay", "ce_weight"),
            at_least(self, 1, "seeds", "epochs"),
            above_zero(self, "lr", "temperature"),
            at_least(self, 1, "zeta"),
            (len(self.models) > 0, "models is empty; accepted: one or more models"),
            (least >= 1, f"batch_size is {self.batch_size}; accepted: 1 or more"),
            below_one(self, "ema"),
        )


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """What the federation may use, how long it waits, and who makes how many images.

    A run waits `wait_s` for its nodes, and `deadline_s` for the answers of each stage. A deployment
    then begins with those that have come, if they are `min_clients`.
    slots: `even` deals the images of a class evenly to the clients that hold it, `histogram` in
    proportion to how many real ones of it each holds (`slots.py`).
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    min_clients: int = 1
    slots: Literal["even", "histogram"] = "even"
    wait_s: float = 120.0
    deadline_s: float = 3600.0
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0

    def __post_init__(self) -> None:
        check(
            at_least(self, 0, "gpus_per_client"),
            at_least(self, 1, "min_clients", "cpus_per_client"),
            above_zero(self, "wait_s", "deadline_s"),
        )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow records the run; null: a sqlite store in the current folder."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    enabled: bool = True
    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The axes of `fedistill sweep`; one left out has the experiment's own value alone.

    `alpha` is that of a partition that has one; `iid` among its values is the even split.
    `distiller` names methods: the experiment's own keeps its options, others have their defaults.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    clients: tuple[int, ...] = ()
    ipc: tuple[int, ...] = ()
    alpha: tuple[float | str, ...] = ()
    distiller: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        axes: dict[str, tuple[Any, ...]] = vars(self)
        twice = [f"{name} {list(values)}" for name, values in axes.items() if _repeats(values)]
        odd = [value for value in self.alpha if isinstance(value, str) and value != "iid"]
        check(
            (not twice, f"{' and '.join(twice)} has a value twice; accepted: each value once"),
            (not odd, f"alpha has {odd} in it; accepted: numbers above 0, and iid"),
        )


def _repeats(values: tuple[Any, ...]) -> bool:
    return len(set(values)) < len(values)


Baseline = Literal[
    "random", "herding", "k_center", "hard_label", "ensemble", "weight_average", "fedavg",
    "full_data",
]  # fmt: skip
_CORESETS = ("random", "herding", "k_center")  # sets of real images, made by distillers so named
_NEED_TEACHERS = ("herding", "k_center", "ensemble", "weight_average")  # on the server


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
        others = [name for name in get_args(Baseline) if name not in _NEED_TEACHERS]
        wanted = [name for name in self.baselines if name in _NEED_TEACHERS]
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

    @property
    def coresets(self) -> tuple[str, ...]:
        """Baselines that are sets of real images: each is a distiller's name.

        DD-Ranking's scores need random ones.
        """
        wanted = {*self.baselines, *(["random"] if self.student.ranking else [])}
        return tuple(name for name in _CORESETS if name in wanted)

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
