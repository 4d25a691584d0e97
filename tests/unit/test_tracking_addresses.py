"""What can be said of tracking without a server: keys, addresses, what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from journals import write_run

from fedistill import mlflow_store
from fedistill.errors import UserError
from fedistill.journal import absolute_uri, sqlite_path
from fedistill.tracking import default_uri, deliver, ui_command


@pytest.mark.parametrize("content", [None, "", '{"event": "metrics"}\n'])
def test_folder_without_a_started_run_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tracking.jsonl").write_text(content)
    with pytest.raises(UserError, match="started run"):
        deliver(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"tracking.jsonl"}


def test_missing_mlflow_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="pip install mlflow"):
        deliver(tmp_path)


def test_module_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, fedistill.tracking; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("teacher/val_acc", "teacher/val_acc"),
        ("acc@5 (%)", "acc_5 ___"),
        ("/a//b/../c/", "a/b/c"),
        ("..", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_keys_become_ones_that_mlflow_takes(name: str, key: str) -> None:
    assert mlflow_store._key(name) == key


def test_ui_command() -> None:
    page = "/#/experiments/7/runs?workflowType=machine_learning"
    command = ui_command("sqlite:////a b/mlflow.db", "7")
    assert "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'" in command
    assert command.endswith(f"http://127.0.0.1:5000{page}")
    assert ui_command("http://ann:pw@host:5000/", "7") == f"http://host:5000{page}"
    assert ui_command("http://host:5000") == "http://host:5000"


def test_sqlite_stores_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_uri(Path()) == absolute_uri("sqlite:///mlflow.db")
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{Path.cwd()}/mlflow.db"
    assert absolute_uri("http://host") == "http://host"


def test_a_sqlite_store_may_name_its_driver_and_options() -> None:
    uri = absolute_uri("sqlite+pysqlite:///m.db?timeout=5")
    assert uri == f"sqlite+pysqlite:///{Path.cwd()}/m.db?timeout=5"
    assert sqlite_path(uri) == Path.cwd() / "m.db"
    assert absolute_uri(uri) == uri
