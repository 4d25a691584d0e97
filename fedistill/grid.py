"""The federations of a sweep: one for each choice of clients, alpha, method and seed.

A method is a distiller, or one choice of the options that are varied. Every federation makes the
sets of all IPC at once, since they share teachers and images.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

from fedistill import config_file
from fedistill.config import Config, SweepConfig
from fedistill.errors import ConfigError

_KINDS: Mapping[str, Callable[[str], Any]] = {
    "clients": int,
    "ipc": int,
    "alpha": lambda text: text if text == "iid" else float(text),
    "distiller": str,
    "seed": int,
}
_LONGEST = 120  # letters of what is varied in the name of a folder
_ACCEPTED = {
    "clients": "whole numbers",
    "ipc": "whole numbers",
    "alpha": "numbers, or iid,",
    "distiller": "names",
    "seed": "whole numbers",
}


@dataclass(frozen=True, kw_only=True)
class Federation:
    """One run of a sweep.

    Attributes:
        config: of the run.
        folder: its output folder, below that of the sweep; says which run it is.
        method: its distiller and what is varied: "mibdc", or "mibdc (weight 0)".
        path: of the YAML file that the config is from.
        overrides: of that file, without those of what is varied.
        choice: the values of what this command varies.
        varied: the keys whose values the method names.
    """

    config: Config
    folder: str
    method: str
    path: Path = field(compare=False)
    overrides: tuple[str, ...] = field(compare=False)
    choice: Mapping[str, Any] = field(compare=False)
    varied: tuple[str, ...] = ()

    @property
    def alpha(self) -> float | None:
        """Of the partition, if it has one."""
        return self.config.partition.alpha

    def with_choice(self, choice: Mapping[str, Any]) -> Config:
        """Return the config that this command gives other values of what is varied.

        Args:
            choice: values by their keys; of a section its tree.

        Raises:
            ConfigError: the command and these values do not go together.
        """
        return config_file.load(self.path, [*self.overrides, *_overrides(choice)])

    def as_dict(self) -> dict[str, Any]:
        """Return what tells this federation from the others."""
        return {
            "folder": self.folder,
            "clients": self.config.partition.clients,
            "alpha": self.alpha,
            "distiller": self.method,
            "varied": [*self.varied],
            "seed": self.config.seed,
        }


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A sweep before it runs.

    Attributes:
        base: the config that the axes change; its section `sweep` names all of them.
        axes: the values of each.
        federations: in the order they run: a seed's whole comparison before the next seed.
    """

    base: Config
    axes: dict[str, list[Any]]
    federations: list[Federation]


def load(path: Path, overrides: Sequence[str] = (), axes: SweepConfig | None = None) -> Grid:
    """Read a config and spread its axes.

    Args:
        path: a YAML file; its section `sweep` may name axes.
        overrides: as for `config_file.load`.
        axes: of the command line; they replace those of the file, key by key where keys vary.

    Raises:
        ConfigError: a config of the grid is not accepted, two of them are the same, or there is
            nothing to compare.
    """
    base = config_file.load(path, overrides)
    found = _axes(base, axes)
    vary = {**(base.sweep.vary if base.sweep else {}), **(axes.vary if axes else {})}
    if not any(found.values()) and not vary:
        raise ConfigError(
            f"{path} names no axis to sweep over, and neither does the command; give one, for "
            "example --clients 1,2,5 --ipc 1,10, or a section `sweep` in the config"
        )
    base_alpha: list[Any] = [None]
    values = {
        "clients": found["clients"] or [base.partition.clients],
        "ipc": sorted(found["ipc"]) or [*base.distill.ipc],
        "alpha": found["alpha"] or base_alpha,
        "distiller": found["distiller"] or [base.distill.name],
        "seed": found["seed"] or [base.seed],
    }
    federations = []
    for seed, distiller, choice, alpha, clients in product(
        values["seed"], values["distiller"], _choices(vary), values["alpha"], values["clients"]
    ):
        own = [
            "sweep=null",
            f"seed={seed}",
            f"partition.clients={clients}",
            *_partition(base, alpha),
            *_distill(base, distiller, values["ipc"]),
        ]
        config = config_file.load(path, [*overrides, *own, *_overrides(choice)])
        varied = _told(choice)
        federations.append(
            Federation(
                config=config,
                folder=_folder(config, found, varied),
                method=f"{distiller} ({varied})" if varied else distiller,
                path=path,
                overrides=(*overrides, *own),
                choice=choice,
                varied=tuple(choice),
            )
        )
    _check_different(federations)
    resolved = {
        **values,
        "alpha": list(dict.fromkeys(item.alpha for item in federations)),
        "distiller": list(dict.fromkeys(item.method for item in federations)),
    }
    named = {name: tuple(chosen) for name, chosen in found.items()}
    base = replace(base, sweep=SweepConfig(**named, vary=vary))
    return Grid(base=base, axes=resolved, federations=federations)


def parse_axes(texts: Mapping[str, str | None], vary: Sequence[str] = ()) -> SweepConfig:
    """Read the axes of a command line: values with commas between them.

    Args:
        texts: by the name of the axis.
        vary: any other keys, as `KEY=VALUE,VALUE`.

    Raises:
        ConfigError: a value is not of its axis.
    """
    varied = [_parse_varied(text) for text in vary]
    values: dict[str, Any] = {"vary": dict(varied)}
    if len(values["vary"]) < len(varied):
        raise ConfigError(
            f"--vary names a key twice: {', '.join(key for key, _ in varied)}; accepted: each key "
            "once, with all of its values"
        )
    for name, text in texts.items():
        items = [item.strip() for item in (text or "").split(",") if item.strip()]
        if text is not None and not items:
            raise ConfigError(f"--{name} is empty; accepted: values with commas between them")
        try:
            values[name] = tuple(_KINDS[name](item) for item in items)
        except ValueError as error:
            raise ConfigError(
                f"--{name} is '{text}' ({error}); accepted: {_ACCEPTED[name]} with commas between"
            ) from error
    try:
        return SweepConfig(**values)
    except ValueError as error:
        raise ConfigError(f"the axes of the sweep: {error}") from error


def _parse_varied(text: str) -> tuple[str, tuple[Any, ...]]:
    import yaml

    key, sign, values = text.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]")
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none, endless brackets
        found = []
    plain = all(item is None or isinstance(item, str | int | float) for item in found)
    if not key or not sign or not found or not plain:
        raise ConfigError(
            f"--vary is '{text}'; accepted: KEY=VALUE,VALUE, for example distill.weight=0,1"
        )
    return key, tuple(found)


def _choices(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of values; of nothing one that is empty."""
    return [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]


def _told(choice: Mapping[str, Any]) -> str:
    """Name a combination: "alpha 0.1, teacher.epochs 3"; options of the method by their name."""
    return ", ".join(
        f"{key.removeprefix('distill.')} {value if isinstance(value, str) else _written(value)}"
        for key, value in choice.items()
    )


def _overrides(choice: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_written(value)}" for key, value in choice.items()]


def _check_different(federations: Sequence[Federation]) -> None:
    """Refuse two federations that are the same experiment, or would share a folder."""
    known: dict[str, Federation] = {}
    for it in federations:
        for mark in (config_file.identity(it.config), it.folder.casefold()):
            other = known.setdefault(mark, it)
            if other is not it:
                raise ConfigError(
                    f"'{other.method}' and '{it.method}' are the same experiment, or differ in "
                    "what a folder's name cannot tell; accepted: values that differ"
                )


def _written(value: Any) -> str:
    """Write a value as YAML reads it: 1e-05 would be a string, 0.00001 is not."""
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return json.dumps(value)


def _axes(base: Config, own: SweepConfig | None) -> dict[str, list[Any]]:
    """Return the values given for each axis: those of the command line, else of the file."""
    sections = [section for section in (own, base.sweep) if section is not None]
    return {
        name: next((list(values) for it in sections if (values := getattr(it, name))), [])
        for name in _KINDS
    }


def _partition(base: Config, alpha: float | str | None) -> list[str]:
    """Return the overrides for one alpha; a split that has none becomes Dirichlet's."""
    if alpha is None:
        return []
    # Options of the base's own split would have no meaning for this one.
    plain = ["partition.classes_per_client=null", "partition.shards_per_client=null"]
    if alpha == "iid":
        return ["partition.name=iid", "partition.alpha=null", *plain]
    name = "dirichlet" if base.partition.alpha is None else base.partition.name
    return [f"partition.name={name}", f"partition.alpha={alpha}", *plain]


def _distill(base: Config, name: str, sizes: Sequence[int]) -> list[str]:
    """Return the overrides for one distiller: options are those of the config's own alone."""
    if name == base.distill.name:
        return [f"distill.ipc={list(sizes)}"]
    return [f"distill={{name: {name}, ipc: {list(sizes)}}}"]


def _folder(config: Config, axes: dict[str, list[Any]], varied: str) -> str:
    parts = [f"clients-{config.partition.clients:02d}"]
    if axes["alpha"]:
        alpha = config.partition.alpha
        parts.append("iid" if alpha is None else f"alpha-{alpha:g}")
    if axes["distiller"]:
        parts.append(config.distill.name)
    if varied:
        slug = re.sub(r"[^A-Za-z0-9.+-]+", "-", varied)
        if len(slug) > _LONGEST:  # file systems take 255 bytes
            slug = f"{slug[:_LONGEST]}-{hashlib.sha256(varied.encode()).hexdigest()[:8]}"
        parts.append(slug)
    return f"runs/{'_'.join([*parts, f'seed-{config.seed}'])}"
