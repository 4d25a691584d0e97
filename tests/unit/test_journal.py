"""What a run writes down for MLflow: strict lines, without secrets, from many threads."""

import json
import math
import threading
from collections import Counter
from pathlib import Path

import pytest

from fedistill.errors import OutputError
from fedistill.journal import read_events, without_secrets
from fedistill.tracking import (
    Journal,
    flatten,
)

SECRET_URI = "http://ann:s3cret@127.0.0.1:9/mlflow?token=s3cret"


def test_secrets_are_never_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start(experiment="e", run_name="r", tags={"note": f"see {SECRET_URI}"}, uri=SECRET_URI)
    journal.params({"tracking": {"uri": SECRET_URI}})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any("s3cret" in path.read_text() for path in files)
    assert "ann" not in journal.path.read_text()
    start = next(read_events(journal.path))[0]
    assert start["uri"] == "http://127.0.0.1:9/mlflow?token="


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://ann:p@ss@host:5000/x", "http://host:5000/x"),
        ("postgresql+psycopg2://ann:pw@host/db?sslpassword=pw&a=1", None),
        ("https://token@host", "https://host"),
        ("http://host/a@b", "http://host/a@b"),
        ("ann@example.org", "ann@example.org"),
        ("http://[::1]:5000/users/a@b?next=/c@d", "http://[::1]:5000/users/a@b?next=/c@d"),
        ("http://host:5000?next=/a@b", "http://host:5000?next=/a@b"),
        ('{"uri":"http://host:5000","to":"ann@b"}', '{"uri":"http://host:5000","to":"ann@b"}'),
        ("file:///C:/users/a@b", "file:///C:/users/a@b"),
        ("postgresql://ann:pa/ss@db/mlflow", "postgresql://db/mlflow"),
        ('postgresql://ann:p"w@db/mlflow', "postgresql://db/mlflow"),
        ("postgresql://ann:1234@db/mlflow", "postgresql://db/mlflow"),
        ("mysql+pymysql://ann:12/x@db/mlflow", "mysql+pymysql://db/mlflow"),
        ("Postgresql://ann@corp:pa/ss@db/mlflow", "Postgresql://db/mlflow"),
        ("postgresql://ann:p@ss@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
    ],
)
def test_without_secrets(text: str, clean: str | None) -> None:
    assert without_secrets(text) == (clean or "postgresql+psycopg2://host/db?sslpassword=&a=1")


def test_a_quoted_address_leaves_its_event_readable(tmp_path: Path) -> None:
    """A secret that is cut out of finished JSON may take the backslash of a quote with it."""
    journal = Journal(tmp_path)
    journal.tags({"note": 'see "https://host/x?token=s3cret" ok'})
    (event,) = [event for event, _ in read_events(journal.path)]
    assert event["tags"] == {"note": 'see "https://host/x?token=" ok'}


def test_events_of_many_threads_are_whole_and_have_times_of_their_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def write(thread: int) -> None:
        for step in range(100):
            journal.metrics({"a": 1.0}, step=step, run=f"client/{thread:02}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [event for event, _ in read_events(journal.path)]
    assert Counter(event["run"] for event in events) == {f"client/{n:02}": 100 for n in range(4)}
    assert len({event["time"] for event in events}) == 400


def test_journal_is_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"a": math.nan, "b": -math.inf})
    (line,) = journal.path.read_text().splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found["metrics"] == {"a": "nan", "b": "-inf"}


def test_artefact_outside_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        Journal(tmp_path / "run").artifact(tmp_path / "outside.txt")


def test_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "file")


def test_flatten() -> None:
    config = {
        "seed": 0,
        "data": {"name": "digits", "size": None},
        "distill": {"ipc": (1, 10, 50), "options": {}},
        "model": ({"name": "convnet"}, {"name": "resnet18"}),
    }
    assert flatten(config) == {
        "seed": "0",
        "data.name": "digits",
        "data.size": "null",
        "distill.ipc": "1,10,50",
        "distill.options": "{}",
        "model.0.name": "convnet",
        "model.1.name": "resnet18",
    }
    assert flatten({"a": [], "b": True, "c": {10: 0.5}, "d": [[1], 2]}) == {
        "a": "[]",
        "b": "true",
        "c.10": "0.5",
        "d": "[1],2",
    }
    assert flatten({}) == {}
