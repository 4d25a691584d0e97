"""Validate a tree of keys as a config, and say all that is wrong with it at once.

Pydantic checks the dataclasses of `config.py`; the options of a distiller, a regulariser or a
co-training are checked as the dataclass of that part.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from fedistill import registry
from fedistill.config import (
    Config,
    CotrainConfig,
    DistillConfig,
    ModelConfig,
    RegularizerConfig,
)
from fedistill.errors import ConfigError, known_names

_DISTILL_KEYS = {field.name for field in dataclasses.fields(DistillConfig)} - {"options"}
_REGULARIZER_KEYS = {field.name for field in dataclasses.fields(RegularizerConfig)} - {"options"}
_COTRAIN_KEYS = {field.name for field in dataclasses.fields(CotrainConfig)} - {"options"}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's names


def validate(tree: dict[str, Any], origin: str) -> Config:
    """Validate the whole tree, and each part's options against its own dataclass."""
    errors: list[str] = []
    distill = tree.get("distill")
    if isinstance(distill, dict):
        distill.setdefault("name", "sre2l")
        errors += _take_options("distillers", distill, _DISTILL_KEYS, "distill")
        distill["ipc"] = _as_list(distill.get("ipc", [10]))
        distill["regularizers"] = _as_list(named(distill.get("regularizers", [])))
        for index, item in enumerate(distill["regularizers"]):
            if isinstance(item, dict):
                where = f"distill.regularizers.{index}"
                errors += _take_options("losses", item, _REGULARIZER_KEYS, where)
    if tree.get("cotrain") is not None:
        tree["cotrain"] = named(tree["cotrain"])
        if isinstance(tree["cotrain"], dict):
            tree["cotrain"].setdefault("name", "mib")
            errors += _take_options("cotrain", tree["cotrain"], _COTRAIN_KEYS, "cotrain")
    if "model" in tree:
        tree["model"] = named(tree["model"])
    teacher = tree.get("teacher")
    if isinstance(teacher, dict) and "backbones" in teacher:
        teacher["backbones"] = _as_list(named(teacher["backbones"]))
    student = tree.get("student")
    if isinstance(student, dict) and "models" in student:
        student["models"] = _as_list(student["models"])
    sweep = tree.get("sweep")
    if isinstance(sweep, dict):
        axes: dict[str, Any] = {k: _as_list(it) for k, it in sweep.items() if k != "vary"}
        vary = sweep.get("vary")
        if isinstance(vary, dict):
            axes["vary"] = {key: _as_list(values) for key, values in vary.items()}
        elif vary is not None:
            axes["vary"] = vary
        tree["sweep"] = axes
    if "baselines" in tree:
        tree["baselines"] = _as_list(tree["baselines"])
    config, found = parse(Config, tree)
    errors += found
    if errors:
        lines = "".join(f"\n  - {error}" for error in dict.fromkeys(errors))
        raise ConfigError(f"{origin} has {len(dict.fromkeys(errors))} error(s):{lines}")
    assert isinstance(config, Config)
    return config


def schema() -> dict[str, Any]:
    """Return the JSON schema of a config file (options of parts are listed by `registry`)."""
    from pydantic import TypeAdapter

    found: dict[str, Any] = TypeAdapter(Config).json_schema()
    for name, keys in (
        ("DistillConfig", _DISTILL_KEYS),
        ("RegularizerConfig", _REGULARIZER_KEYS),
        ("CotrainConfig", _COTRAIN_KEYS),
    ):
        section = found["$defs"][name]
        section["properties"] = {key: section["properties"][key] for key in sorted(keys)}
        section["additionalProperties"] = True
    return found


def _as_list(value: Any) -> list[Any]:
    """Accept one value where a list is expected."""
    return value if isinstance(value, list) else [value]


def named(value: Any) -> Any:
    """Accept the bare name of a network, or of a part, where a section is expected."""
    if isinstance(value, list):
        return [named(item) for item in value]
    return {"name": value} if isinstance(value, str) else value


def _take_options(
    kind: str, section: dict[str, Any], common: Iterable[str], where: str
) -> list[str]:
    """Move a part's own keys of a section into `options`, with the part's defaults filled in.

    Returns:
        The errors found.
    """
    if "options" in section:
        return [f"{where}.options: unknown key; write the options beside `name`"]
    own = {key: section.pop(key) for key in list(section) if key not in set(common)}
    section["options"] = {}
    if not isinstance(section.get("name"), str):
        return []  # the validation of the section itself says so
    try:
        part = registry.load(kind, section["name"])
    except ConfigError as error:
        return [f"{where}.name: {error}"]
    section["name"] = section["name"].replace("-", "_")  # one name, one hash
    instance, errors = parse(part, own, where, extra_known=common)
    if instance is not None:
        fields = dataclasses.fields(instance)
        section["options"] = {item.name: getattr(instance, item.name) for item in fields}
    return errors


def parse(
    kind: type[Any], tree: Any, where: str = "", extra_known: Iterable[str] = ()
) -> tuple[Any, list[str]]:
    """Validate a tree as a dataclass; return it with the errors found, one text for each key."""
    from pydantic import TypeAdapter, ValidationError

    try:
        made = TypeAdapter(kind).validate_python(tree)
        return made, list(_booleans_as_numbers(tree, made, where))
    except ValidationError as invalid:
        found: dict[str, list[str]] = {}
        for error in invalid.errors():
            path = [part for part in error["loc"] if _is_key(part)]
            if error["type"] in _UNKNOWN:  # its name may look like a tag
                path = [*filter(_is_key, error["loc"][:-1]), error["loc"][-1]]
            name = ".".join([where, *map(str, path)] if where else map(str, path))
            if error["type"] in _UNKNOWN:
                known = {*_known_keys(kind, path[:-1]), *extra_known}
                text = f"unknown key; {known_names(str(path[-1]), known)}"
            elif error["type"] == "value_error":
                text = str(error["ctx"]["error"])
            elif error["type"] == "missing":
                text = "is missing; give it a value"
            elif error["type"] == "dataclass_type":
                text = f"is {error['input']!r}; accepted: a section of keys"
            else:
                message = error["msg"].removeprefix("Input should be ")
                text = f"is {error['input']!r}; accepted: {message}"
            found.setdefault(name, []).append(text)
        return None, [f"{name or 'config'}: {' or '.join(texts)}" for name, texts in found.items()]


def _booleans_as_numbers(tree: Any, made: Any, where: str) -> Iterator[str]:
    """Find each true or false that became a 1 or 0: a slip that would run as another experiment."""
    if isinstance(tree, bool):
        if not isinstance(made, bool):
            yield f"{where}: is {tree}; accepted: a number"
    elif isinstance(tree, dict):
        table = isinstance(made, Mapping)  # its keys may have become numbers; their order stays
        children = made.values() if table else [getattr(made, key) for key in tree]
        for (key, value), child in zip(tree.items(), children, strict=False):
            yield from _booleans_as_numbers(value, child, f"{where}.{key}" if where else key)
    elif isinstance(tree, list) and isinstance(made, tuple | list):
        for index, (value, child) in enumerate(zip(tree, made, strict=False)):
            yield from _booleans_as_numbers(value, child, f"{where}.{index}")


_TAGS = ("int", "str", "float", "bool", "ModelConfig", "none")


def _is_key(part: str | int) -> bool:
    """Tell a key of the file from the tags that pydantic adds for the branches of a union."""
    if isinstance(part, int):
        return True
    tags = ("tuple[", "dict[", "function-")
    return not part.startswith(tags) and part not in _TAGS


def _known_keys(kind: type[Any], path: Sequence[str | int]) -> set[str]:
    """Return the keys of the section at a path below a dataclass."""
    for part in path:
        if isinstance(part, int):
            continue
        hint = get_type_hints(kind).get(str(part), ModelConfig)
        inside = (it for it in (hint, *get_args(hint)) if dataclasses.is_dataclass(it))
        kind = next((it for it in inside if isinstance(it, type)), ModelConfig)
    return {field.name for field in dataclasses.fields(kind)}
