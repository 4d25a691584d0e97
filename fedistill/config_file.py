"""Read a config from YAML, say all that is wrong with it at once, and write it back.

Reading has four steps: parse, override (`--set key=value`), validate, fill in. Validation
uses pydantic on the dataclasses of `config.py` and of the chosen parts. Filling in gives every
key left out its value, so that the resolved config tells the whole experiment.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fedistill import protocols, registry
from fedistill.config import (
    Config,
    CotrainConfig,
    DistillConfig,
    ModelConfig,
    RegularizerConfig,
    StudentConfig,
)
from fedistill.errors import ConfigError, known_names

_DISTILL_KEYS = {field.name for field in dataclasses.fields(DistillConfig)} - {"options"}
_REGULARIZER_KEYS = {field.name for field in dataclasses.fields(RegularizerConfig)} - {"options"}
_COTRAIN_KEYS = {field.name for field in dataclasses.fields(CotrainConfig)} - {"options"}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's names


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, validate and fill in a config file.

    Args:
        path: a YAML file.
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        ConfigError: with every error found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    return loads(text, overrides, origin=str(path))


def loads(text: str, overrides: Sequence[str] = (), origin: str = "config") -> Config:
    """Like `load`, from a YAML text."""
    import yaml

    try:
        tree = _read(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2020-13-45
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin} holds a {type(tree).__name__}; accepted: a mapping of keys")
    for override in overrides:
        _apply_override(tree, override)
    return from_dict(tree, origin)


def _read(text: str) -> Any:
    """Read YAML, refusing a key that is twice in a mapping: the first value would be lost."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in sorted(key for key in set(keys) if keys.count(key) > 1):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is there twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def from_dict(tree: Mapping[str, Any], origin: str = "config") -> Config:
    """Like `load`, from the tree that a YAML file holds."""
    try:
        plain = json.loads(json.dumps(tree, default=str))
    except (TypeError, ValueError, RecursionError) as error:  # a date as key, an endless anchor
        raise ConfigError(f"{origin} is not a tree of keys and plain values: {error}") from error
    return _fill_in(_validate(plain, origin))


def dump(config: Config) -> str:
    """Write a config as YAML; `loads(dump(config)) == config`."""
    import yaml

    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    return text


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as the plain tree that YAML and JSON hold."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    tree["distill"] = _flat(tree["distill"])
    tree["distill"]["regularizers"] = [_flat(item) for item in tree["distill"]["regularizers"]]
    if tree["cotrain"] is not None:
        tree["cotrain"] = _flat(tree["cotrain"])
    sizes = tree["student"]["batch_size"]
    if isinstance(sizes, dict):  # JSON has made the keys strings
        tree["student"]["batch_size"] = {int(ipc): size for ipc, size in sizes.items()}
    return tree


def read_model(text: str, origin: str) -> ModelConfig:
    """Read a network as YAML, as the key `model` of a config holds it: a name, or a section.

    Raises:
        ConfigError: it is none.
    """
    import yaml

    try:
        tree = _named(_read(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{origin} is no network; accepted: a name, or a section of keys")
    found, errors = _parse(ModelConfig, tree, origin)
    if errors:
        raise ConfigError("; ".join(errors))
    assert isinstance(found, ModelConfig)
    return found


def dump_model(model: ModelConfig) -> str:
    """Write a network as YAML; `read_model(dump_model(model), "") == model`."""
    import yaml

    keys = {key: value for key, value in dataclasses.asdict(model).items() if value is not None}
    text: str = yaml.safe_dump(keys, sort_keys=False)
    return text


def shareable(config: Config) -> dict[str, Any]:
    """Return the config for others: of a folder on this machine only the last name is left."""
    tree = to_dict(config)
    for section, key in (("data", "name"), ("cotrain", "public")):
        name = Path((tree[section] or {}).get(key) or "")
        if name.is_absolute():
            tree[section][key] = name.name
    return tree


def sha256(config: Config) -> str:
    """Hash a config: the same experiment has the same hash wherever it is recorded."""
    tree = shareable(config)
    del tree["tracking"], tree["sweep"]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


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


def _flat(section: dict[str, Any]) -> dict[str, Any]:
    """Put a part's options beside its common keys, as in YAML."""
    options = section.pop("options")
    return {**section, **options}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set '{override}' is not of the form section.key=value")
    try:
        value = _read(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set '{override}': the value is not valid YAML: {error}") from error
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(
                f"--set '{override}': {section} is {child!r}, not a section with keys"
            )
        node = child
    node[last] = value


def _validate(tree: dict[str, Any], origin: str) -> Config:
    """Validate the whole tree, and each part's options against its own dataclass."""
    errors: list[str] = []
    distill = tree.get("distill")
    if isinstance(distill, dict):
        distill.setdefault("name", "sre2l")
        errors += _take_options("distillers", distill, _DISTILL_KEYS, "distill")
        distill["ipc"] = _as_list(distill.get("ipc", [10]))
        distill["regularizers"] = _as_list(_named(distill.get("regularizers", [])))
        for index, item in enumerate(distill["regularizers"]):
            if isinstance(item, dict):
                where = f"distill.regularizers.{index}"
                errors += _take_options("losses", item, _REGULARIZER_KEYS, where)
    if tree.get("cotrain") is not None:
        tree["cotrain"] = _named(tree["cotrain"])
        if isinstance(tree["cotrain"], dict):
            tree["cotrain"].setdefault("name", "mib")
            errors += _take_options("cotrain", tree["cotrain"], _COTRAIN_KEYS, "cotrain")
    if "model" in tree:
        tree["model"] = _named(tree["model"])
    teacher = tree.get("teacher")
    if isinstance(teacher, dict) and "backbones" in teacher:
        teacher["backbones"] = _as_list(_named(teacher["backbones"]))
    student = tree.get("student")
    if isinstance(student, dict) and "models" in student:
        student["models"] = _as_list(student["models"])
    sweep = tree.get("sweep")
    if isinstance(sweep, dict):
        tree["sweep"] = {axis: _as_list(values) for axis, values in sweep.items()}
    if "baselines" in tree:
        tree["baselines"] = _as_list(tree["baselines"])
    config, found = _parse(Config, tree)
    errors += found
    if errors:
        lines = "".join(f"\n  - {error}" for error in dict.fromkeys(errors))
        raise ConfigError(f"{origin} has {len(dict.fromkeys(errors))} error(s):{lines}")
    assert isinstance(config, Config)
    return config


def _as_list(value: Any) -> list[Any]:
    """Accept one value where a list is expected."""
    return value if isinstance(value, list) else [value]


def _named(value: Any) -> Any:
    """Accept the bare name of a network, or of a part, where a section is expected."""
    if isinstance(value, list):
        return [_named(item) for item in value]
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
    instance, errors = _parse(part, own, where, extra_known=common)
    if instance is not None:
        fields = dataclasses.fields(instance)
        section["options"] = {item.name: getattr(instance, item.name) for item in fields}
    return errors


def _parse(
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


def _is_key(part: str | int) -> bool:
    """Tell a key of the file from the tags that pydantic adds for the branches of a union."""
    if isinstance(part, int):
        return True
    tags = ("tuple[", "dict[", "function-")
    return not part.startswith(tags) and part not in ("int", "str", "float", "ModelConfig", "none")


def _known_keys(kind: type[Any], path: Sequence[str | int]) -> set[str]:
    """Return the keys of the section at a path below a dataclass."""
    for part in path:
        if isinstance(part, int):
            continue
        hint = get_type_hints(kind).get(str(part), ModelConfig)
        inside = (it for it in (hint, *get_args(hint)) if dataclasses.is_dataclass(it))
        kind = next((it for it in inside if isinstance(it, type)), ModelConfig)
    return {field.name for field in dataclasses.fields(kind)}


def _fill_in(config: Config) -> Config:
    """Give every key that was left out its value."""
    student = dataclasses.replace(
        config.student,
        **_missing(config.student, protocols.student_keys(config.student.protocol)),
        models=tuple(_student_model(model, config) for model in config.student.models),
    )
    temperature = _temperature(config.student.temperature, student)
    student = dataclasses.replace(student, temperature=temperature)
    distill = config.distill
    distiller = registry.build("distillers", distill.name, distill.options)
    distill = dataclasses.replace(distill, options=dataclasses.asdict(distiller))
    # A user who wants no tiles sees a mosaic as any other image.
    tiles = 1 if config.relabel.tiles == 1 else distiller.mosaic_tiles
    views = protocols.view_keys(config.student.protocol, tiles)
    if (config.relabel.tiles or 1) > 1:  # who asks for tiles wants to see some
        views["tile_share"] = views["tile_share"] or protocols.TILE_SHARE
    fedavg = dataclasses.replace(
        config.fedavg, **_missing(config.fedavg, {"epochs": config.teacher.epochs})
    )
    labels = protocols.label_keys(config.partition.name, config.relabel.name)
    return dataclasses.replace(
        config,
        student=student,
        relabel=dataclasses.replace(config.relabel, **_missing(config.relabel, views | labels)),
        distill=distill,
        fedavg=fedavg,
    )


def _temperature(wanted: float | None, student: StudentConfig) -> float | None:
    """Return the temperature of the filled-in recipe; `mse` compares logits and has none."""
    if student.loss == "kl":
        return student.temperature or protocols.TEMPERATURE
    if wanted is not None:
        raise ConfigError(
            f"student.temperature is {wanted:g} and student.loss is mse, which has no "
            "temperature; remove it, or set student.loss: kl"
        )
    return None


def _missing(section: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if getattr(section, key) is None}


def _student_model(model: str | ModelConfig, config: Config) -> ModelConfig:
    if isinstance(model, ModelConfig):
        return model
    same = [teacher for teacher in config.teacher_models if teacher.name == model]
    return same[0] if same else ModelConfig(name=model)
