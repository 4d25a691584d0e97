"""The sections of a config that say what clients do: networks, teachers, images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fedistill.rules import STRICT, above_zero, at_least, below_one, check


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
