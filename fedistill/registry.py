"""Find a part by its file name: `load("distillers", "sre2l")` is `distillers/sre2l.py`.

A part is one file with one public class, a frozen dataclass whose fields are its options.
Adding a file adds the part; there is no list to edit. A file whose classes are abstract is none.
In a config `k-center` means the same as `k_center`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from fedistill.errors import ConfigError, known_names

_BASES = {"distillers": "Distiller", "losses": "Regularizer"}
_SINGLE = {"cotrain": "MIB"}  # kinds that are one file: `fedistill/cotrain.py`


def names(kind: str) -> list[str]:
    """List the parts of a kind: the files of the package `fedistill.<kind>` that define one."""
    return sorted(_parts(kind))


@cache
def _parts(kind: str) -> Mapping[str, type[Any]]:
    if kind in _SINGLE:
        part = getattr(importlib.import_module(f"fedistill.{kind}"), _SINGLE[kind])
        return {_SINGLE[kind].lower(): part}
    package = importlib.import_module(f"fedistill.{kind}")
    base = getattr(importlib.import_module(f"fedistill.{kind}.base"), _BASES[kind])
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name == "base" or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"fedistill.{kind}.{info.name}")
        parts = [
            member
            for name, member in vars(module).items()
            if inspect.isclass(member)
            and issubclass(member, base)
            and member.__module__ == module.__name__
            and not inspect.isabstract(member)
            and not name.startswith("_")
        ]
        assert len(parts) <= 1, f"{module.__name__} must define one part, has {parts}"
        if parts:
            found[info.name] = parts[0]
    return found


def load(kind: str, name: str) -> type[Any]:
    """Return the class of a part.

    Args:
        kind: a package of parts, "distillers" or "losses"; or "cotrain", whose one part is mib.
        name: the part's file name without ".py".

    Raises:
        ConfigError: there is no such part.
    """
    file = name.replace("-", "_")
    if file not in _parts(kind):
        known = known_names(name, names(kind))
        among = f"kinds of {kind}" if kind in _SINGLE else kind
        raise ConfigError(f"'{name}' does not exist among the {among}; {known}")
    return _parts(kind)[file]


def build(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """Make a part from its name and its options."""
    return load(kind, name)(**options)
