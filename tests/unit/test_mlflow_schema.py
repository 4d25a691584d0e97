"""Stores of another MLflow are refused before anything opens them."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fedistill import mlflow_schema
from fedistill.errors import OutputError
from fedistill.journal import Journal
from fedistill.mlflow_schema import check_store
from fedistill.tracking import deliver


def store(path: Path, revision: str | None) -> str:
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table alembic_version (version_num text)")
        if revision is not None:
            database.execute("insert into alembic_version values (?)", [revision])
        database.commit()
    return f"sqlite:///{path}"


def test_the_installed_mlflow_writes_one_of_the_revisions_that_it_knows():
    known, newest = mlflow_schema._known_revisions()
    assert newest in known
    assert len(known) > 20


def test_the_newest_schema_is_accepted_and_so_is_a_store_that_is_not_there(tmp_path: Path):
    _, newest = mlflow_schema._known_revisions()
    check_store(store(tmp_path / "new.db", newest))
    check_store(f"sqlite:///{tmp_path / 'missing.db'}")
    check_store("http://127.0.0.1:9")


@pytest.mark.parametrize("older", [True, False])
def test_another_schema_is_refused_and_nothing_is_changed(tmp_path: Path, older: bool):
    known, newest = mlflow_schema._known_revisions()
    path = tmp_path / "my #1 store, 50%25.db"
    uri = store(path, sorted(known - {newest})[0] if older else "f" * 12)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="mlflow db upgrade" if older else "upgrade mlflow"):
        check_store(uri)
    assert path.read_bytes() == before
    Journal(tmp_path).start(experiment="e", run_name="r", tags={}, uri=uri)
    with pytest.raises(OutputError, match="nothing was changed"):  # in place of migrating it
        deliver(tmp_path)
    assert path.read_bytes() == before
    assert {it.name for it in tmp_path.iterdir()} == {path.name, "tracking.jsonl"}


@pytest.mark.parametrize("content", ["text", "other tables", "no revision"])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "mlflow.db"
    if content == "text":
        path.write_text("not a database, and longer than nothing" * 10)
    elif content == "no revision":
        store(path, None)
    else:
        with closing(sqlite3.connect(path)) as database:
            database.execute("create table mine (x text)")
            database.commit()
    with pytest.raises(OutputError, match="is not a store of MLflow"):
        check_store(f"sqlite:///{path}")
