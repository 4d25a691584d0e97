"""Parts are found by their file name, however it is spelled; what is no part is not found."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedistill import config_file, distillers, registry
from fedistill.errors import ConfigError

PART = """
from dataclasses import dataclass
from fedistill.distillers.base import Distilled, Distiller


@dataclass(frozen=True, kw_only=True)
class {name}(Distiller):
    level: int = 3

    def distill(self, task):
        return Distilled(task.shard.images[:0], [])
"""
ABSTRACT = """
from fedistill.distillers.base import Distiller
from fedistill.distillers.sre2l import SRe2L


class HalfDone(Distiller):
    pass
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A second folder of distillers."""
    monkeypatch.setattr(distillers, "__path__", [*distillers.__path__, str(tmp_path)])
    before = set(sys.modules)
    registry._parts.cache_clear()
    yield tmp_path
    registry._parts.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("fedistill.distillers."):
            del sys.modules[name]
            delattr(distillers, name.rpartition(".")[2])


def test_a_new_file_is_a_part(parts: Path):
    (parts / "of_my_own.py").write_text(PART.format(name="Mine"))
    assert "of_my_own" in registry.names("distillers")
    assert registry.build("distillers", "of_my_own", {"level": 4}).level == 4


def test_both_spellings_are_one_experiment(parts: Path):
    (parts / "of_my_own.py").write_text(PART.format(name="Mine"))
    configs = [
        config_file.from_dict({"distill": {"name": name, "level": 4}})
        for name in ("of-my-own", "of_my_own")
    ]
    assert configs[0] == configs[1]
    assert configs[0].distill.name == "of_my_own"
    assert len({config_file.sha256(config) for config in configs}) == 1
    assert config_file.loads(config_file.dump(configs[0])) == configs[0]
    assert registry.load("distillers", "of-my-own") is registry.load("distillers", "of_my_own")


def test_spellings_of_a_term_are_one_experiment():
    first, second = (
        config_file.from_dict({"distill": {"regularizers": [{"name": name, "weight": 1}]}})
        for name in ("total-variation", "total_variation")
    )
    assert config_file.sha256(first) == config_file.sha256(second)


def test_abstract_imported_and_private_classes_are_no_parts(parts: Path):
    (parts / "half_done.py").write_text(ABSTRACT)
    (parts / "_private.py").write_text(PART.format(name="Private"))
    (parts / "hidden.py").write_text(PART.format(name="_Hidden"))
    names = registry.names("distillers")
    assert not {"base", "half_done", "_private", "hidden"} & set(names)
    assert "sre2l" in names


def test_two_parts_in_one_file_are_a_mistake(parts: Path):
    (parts / "both.py").write_text(PART.format(name="One") + PART.format(name="Two"))
    with pytest.raises(AssertionError, match=r"both must define one part"):
        registry.names("distillers")


@pytest.mark.parametrize("name", ["base", "sre3l", "", "../sre2l", "SRe2L"])
def test_what_is_not_there_is_answered_with_what_is(name: str):
    with pytest.raises(ConfigError, match=r"does not exist among the distillers; known: .*sre2l"):
        registry.load("distillers", name)
