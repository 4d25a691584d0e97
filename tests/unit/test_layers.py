"""The architecture in floors, read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes import run_python
from floors import FLOOR_OF, FLOORS, FLOWER, MLFLOW, NEIGHBOUR, NOT_FOR_THE_METHOD

from fedistill import registry

ROOT = Path(__file__).resolve().parents[2]


class Import(NamedTuple):
    module: str
    target: str
    line: int
    at_top: bool


def _modules() -> dict[str, Path]:
    found = {}
    for folder in ("fedistill", "strategies"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def _targets(node: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """Name the modules that a statement imports; `from package import name` may mean two."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        assert node.module is not None
        yield node.module
        names = (f"{node.module}.{alias.name}" for alias in node.names)
        yield from (name for name in names if name in modules)


def _imports() -> list[Import]:
    modules = _modules()
    found = []
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for target in _targets(node, modules):
                found.append(Import(module, target, node.lineno, node in tree.body))  # type: ignore[attr-defined]
    return found


IMPORTS = _imports()


def _package(name: str) -> str:
    return name.partition(".")[0]


def _lines(wrong: list[Import]) -> str:
    return "".join(f"\n{item.module}:{item.line} imports {item.target}" for item in wrong)


def _floor(module: str) -> int:
    neighbour = NEIGHBOUR.get(module.rpartition(".")[0], "")
    return FLOOR_OF[module] if module in FLOOR_OF else FLOOR_OF[neighbour]


def test_every_file_has_a_floor():
    without = set(_modules()) - set(FLOOR_OF)
    assert {module for module in without if module.rpartition(".")[0] not in NEIGHBOUR} == set()
    assert set(FLOOR_OF) - set(_modules()) == set()
    assert len(FLOOR_OF) == sum(map(len, FLOORS)), "a module stands on two floors"


def test_no_import_runs_along_a_floor_or_upwards():
    wrong = [
        item
        for item in IMPORTS
        if item.target in _modules() and _floor(item.target) >= _floor(item.module)
    ]
    assert not wrong, _lines(wrong)


def test_fedistill_never_imports_strategies():
    wrong = [
        item
        for item in IMPORTS
        if _package(item.module) == "fedistill" and _package(item.target) == "strategies"
    ]
    assert not wrong, _lines(wrong)


def test_nobody_imports_tests_or_experiments():
    wrong = [item for item in IMPORTS if _package(item.target) in ("tests", "fakes", "experiments")]
    assert not wrong, _lines(wrong)


def test_flower_is_imported_by_wire_and_the_apps_alone():
    users = {item.module for item in IMPORTS if _package(item.target) == "flwr"}
    assert {user for user in users if _package(user) == "fedistill"} == FLOWER


def test_mlflow_is_imported_by_its_store_alone_and_inside_functions():
    found = [item for item in IMPORTS if _package(item.target) == "mlflow"]
    assert {item.module for item in found} == MLFLOW
    early = [item for item in found if item.at_top]
    assert not early, _lines(early)


def test_the_client_app_starts_without_heavy_packages():
    code = "import sys, fedistill.client_app; print(*sorted(sys.modules))"
    loaded = set(run_python(code).split())
    assert "flwr" in loaded
    assert not loaded & {"mlflow", "torchvision", "ray", "datasets", "sklearn", "matplotlib"}


def test_the_command_answers_without_torch():
    loaded = set(run_python("import sys, fedistill.cli; print(*sys.modules)").split())
    assert not loaded & {"torch", "flwr", "mlflow", "numpy"}


def test_the_method_runs_where_only_torch_is_installed():
    kinds = [(kind, name) for kind in ("distillers", "losses") for name in registry.names(kind)]
    code = f"""
import importlib
for kind, name in {kinds!r}:
    importlib.import_module(f"fedistill.{{kind}}.{{name}}")
import torch
from fedistill import baselines, evaluation, relabel, shares, student, teacher
from fedistill.config import ModelConfig, RelabelConfig
from fedistill.images import DataSpec
from fedistill.models import build
from fedistill.protocols import view_keys

spec = DataSpec(name="t", class_names=("a", "b"), channels=1, size=8, mean=(0.5,), std=(0.5,),
                flip=False)
net = teacher.freeze(build(ModelConfig(depth=2, width=4), spec, 0))
images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
share = shares.Share(partition_id=0, images=images, counts=(1, 1), seconds={{}})
synthetic = shares.integrate([share], {{0: [1, 1]}}, spec)
config = RelabelConfig(**{{**view_keys("default"), "name": "mix", "views": 2}})
cpu = torch.device("cpu")
synthetic = relabel.relabel(
    synthetic, {{0: net}}, config, seed=0, device=cpu, dtype=torch.float32)
print(*synthetic.soft_labels.logits.shape)
"""
    assert run_python(code, NOT_FOR_THE_METHOD).split() == ["2", "2", "2"]


def test_a_blocked_package_really_cannot_be_imported():
    with pytest.raises(AssertionError, match="import of yaml halted"):
        run_python("import yaml", ["yaml"])
