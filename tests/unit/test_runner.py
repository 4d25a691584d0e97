"""What a run's log shows, and what its processes are told."""

import os
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config

from fedistill import processes, runner
from fedistill.runner import _Log
from fedistill.store import VARIABLE

LINES = """\
INFO :      distill: round 1 asks 2 clients
WARNING :   client 1 failed and is left out:
        Traceback (most recent call last):
          File "client.py", line 3, in work
        zlib.error: bad

        The above exception was the direct cause of the following exception:
        RuntimeError: no data
INFO :      distill: received 10 images, 1 clients failed
(ClientAppActor pid=7) something else
WARNING :   Since flwr 1.32, a default changed
""".splitlines()


class Shown:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def test_a_clients_traceback_is_shown_whole_and_the_rest_is_kept(tmp_path: Path):
    shown = Shown()
    with _Log(tmp_path, shown) as log:  # type: ignore[arg-type]
        for line in LINES:
            log.line(line)
    wanted = [line for line in LINES[1:8] if line]
    assert [line for line in shown.lines if line] == wanted
    assert (tmp_path / "log.txt").read_text().splitlines() == LINES


@pytest.mark.parametrize("backend", ["local", "flower"])
@pytest.mark.parametrize(
    ("store", "variable", "used"),
    [("a", "", "a"), ("a", "b", "a"), (None, "b", "b"), (None, "", None)],
)
def test_all_processes_of_a_run_find_the_store_and_later_ones_do_not(
    backend: str,
    store: str | None,
    variable: str,
    used: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A relative path would lead the processes of a simulation elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, variable)
    found: list[str | None] = []

    def work(config: Any, output: Path, *_: Any) -> None:
        children = processes.environment(tmp_path, "/tmp/x", {})
        assert children.get(VARIABLE) == os.environ.get(VARIABLE)
        found.append(os.environ.get(VARIABLE))
        (output / "result.json").write_text("{}")

    monkeypatch.setattr(runner, f"_run_{backend}", work)
    monkeypatch.setattr(runner, "preflight", lambda config: None)
    (tmp_path / "out").mkdir()
    runner.run(tiny_config(), tmp_path / "out", backend, Path(store) if store else None)
    assert found == [str(tmp_path / used) if used else None]
    assert os.environ[VARIABLE] == variable
