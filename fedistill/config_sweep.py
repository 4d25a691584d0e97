"""The section `sweep` of a config: the axes of a grid of experiments."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedistill.rules import STRICT, check

Scalar = str | int | float | bool | None
# Keys that have an axis of their own.
_AXES = {
    "seed": "seed", "partition.clients": "clients", "partition.alpha": "alpha",
    "distill.ipc": "ipc", "distill.name": "distiller", "distill": "distiller",
}  # fmt: skip
# Keys, or their sections, that all federations of a sweep have in common: Flower, MLflow and the
# data are set up once.
_COMMON = (
    "name", "data.name", "federation.cpus_per_client", "federation.gpus_per_client", "tracking",
    "sweep",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The axes of `fedistill sweep`; one left out has the experiment's own value alone.

    `alpha` is that of a partition that has one; `iid` among its values is the even split.
    `distiller` names methods: the experiment's own keeps its options, others have their defaults.
    `vary` gives values to any other keys, `distill.weight: [0, 1]`: every combination of theirs is
    compared like a method of its own.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    clients: tuple[int, ...] = ()
    ipc: tuple[int, ...] = ()
    alpha: tuple[float | str, ...] = ()
    distiller: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()
    vary: dict[str, tuple[Scalar, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        axes: dict[str, tuple[Any, ...]] = {**vars(self), **self.vary}
        del axes["vary"]
        empty = [key for key, values in self.vary.items() if not values]
        taken = [f"{key} (axis {_AXES[key]})" for key in self.vary if key in _AXES]
        common = [
            key for key in self.vary if f"{key}.".startswith(tuple(f"{it}." for it in _COMMON))
        ]
        twice = [f"{name} {list(values)}" for name, values in axes.items() if _repeats(values)]
        odd = [value for value in self.alpha if isinstance(value, str) and value != "iid"]
        check(
            (not twice, f"{' and '.join(twice)} has a value twice; accepted: each value once"),
            (not odd, f"alpha has {odd} in it; accepted: numbers above 0, and iid"),
            (not empty, f"vary gives no values to {empty}; accepted: one or more for each key"),
            (not taken, f"vary names {', '.join(taken)}; accepted: keys without an axis"),
            (
                not common,
                f"vary names {', '.join(common)}, which all federations of a sweep have in common; "
                "accepted: keys of the teachers, the method, the labels, the students ...",
            ),
        )


def _repeats(values: tuple[Any, ...]) -> bool:
    return len({(type(value), value) for value in values}) < len(values)
