"""Read a config from YAML, fill in what it leaves out, and write it back.

Reading has four steps: parse, override (`--set key=value`), validate (`config_check.py`), fill in.
Filling in gives every key left out its value, so that the resolved config tells the whole
experiment.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedistill import protocols, registry
from fedistill.config import (
    Config,
    ModelConfig,
    StudentConfig,
)
from fedistill.config_check import parse, validate
from fedistill.errors import ConfigError
from fedistill.journal import flatten


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


def _read(text: str, aliases: bool = True) -> Any:
    """Read YAML, refusing a key that is twice in a mapping: the first value would be lost.

    Args:
        text: as it was written.
        aliases: whether a value may be named and used again. Nested, a line of them stands for
            gigabytes: nothing for texts of others.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if not aliases and self.check_event(yaml.AliasEvent):
                where = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, "an alias, '*', is refused", where)
            return super().compose_node(parent, index)

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
    return _fill_in(validate(plain, origin))


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
    for key in ("epochs", "batch_size"):
        table = tree["student"][key]
        if isinstance(table, dict):  # JSON has made the keys strings
            tree["student"][key] = {int(ipc): number for ipc, number in table.items()}
    return tree


def read_model(text: str, origin: str) -> ModelConfig:
    """Read a network as YAML, as the key `model` of a config holds it: a name, or a section.

    The text may have come over the network: whatever it is, reading takes little.

    Raises:
        ConfigError: it is none, or holds aliases.
    """
    import yaml

    try:
        tree = _read(text, aliases=False)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}") from error
    tree = {"name": tree} if isinstance(tree, str) else tree
    if not isinstance(tree, dict) or not all(
        isinstance(key, str) and not isinstance(value, list | dict) for key, value in tree.items()
    ):
        raise ConfigError(
            f"{origin} is no network; accepted: a name, or a section of keys with one value each"
        )
    found, errors = parse(ModelConfig, tree, origin)
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


def changed(before: Config, after: Config) -> list[str]:
    """List the keys in which two configs differ."""
    old, new = (flatten(to_dict(config)) for config in (before, after))
    return sorted(key for key in old | new if old.get(key) != new.get(key))


def value(config: Config, key: str) -> Any:
    """Return what a dotted key holds: a plain value, or the tree of a section.

    Raises:
        KeyError: there is no such key, or none that an override could name.
    """
    found: Any = json.loads(json.dumps(to_dict(config)))  # whose keys are texts, as of overrides
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            raise KeyError(key)
        found = found[part]
    return found


def sha256(config: Config) -> str:
    """Hash a config: the same experiment has the same hash wherever it is recorded."""
    return _hash(shareable(config))


def identity(config: Config) -> str:
    """Hash a config as `sha256` does, but for folders: two of one name hold other data each."""
    return _hash(to_dict(config))


def _hash(tree: Mapping[str, Any]) -> str:
    own = {name: section for name, section in tree.items() if name not in ("tracking", "sweep")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


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
    try:
        distiller = registry.build("distillers", distill.name, distill.options)
        distiller = distiller.for_sizes(distill.ipc)
    except ValueError as error:  # of what follows from the sizes
        raise ConfigError(f"config has 1 error(s):\n  - distill: {error}") from error
    distill = dataclasses.replace(distill, options=dataclasses.asdict(distiller))
    # A user who wants no tiles sees a mosaic as any other image.
    tiles = 1 if config.relabel.tiles == 1 else distiller.mosaic_tiles
    cotrain = config.cotrain
    if cotrain is not None:
        part = registry.build("cotrain", cotrain.name, cotrain.options).for_tiles(tiles)
        cotrain = dataclasses.replace(cotrain, options=dataclasses.asdict(part))
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
        cotrain=cotrain,
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
