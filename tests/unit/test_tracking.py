"""The journal, and its replay into a real sqlite store (one store for all tests: it is slow)."""

import json
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from journals import CONFIG, write_run

from fedistill.errors import UserError
from fedistill.journal import read_events
from fedistill.tracking import (
    Journal,
    MlflowSink,
    StoredRun,
    default_uri,
    deliver,
    flatten,
    stored_run,
)

SECRET_URI = "http://ann:s3cret@127.0.0.1:9/mlflow?token=s3cret"


def no_warning(message: str) -> None:
    raise AssertionError(message)


@dataclass
class Live:
    """A run that was sent while it was written, and a client that looks at the store."""

    folder: Path
    uri: str
    stored: StoredRun
    client: Any

    def runs(self, parent: str) -> dict[str, Any]:
        """Return the run and its nested runs by name."""
        found = self.client.search_runs([self.stored.experiment_id])
        return {
            run.info.run_name: run
            for run in found
            if parent in (run.info.run_id, run.data.tags.get("mlflow.parentRunId"))
        }

    def contents(self, parent: str) -> dict[str, Any]:
        """Return all that a reader can see of a run and its nested runs."""
        return {
            name: (
                run.info.status,
                run.data.params,
                {
                    key: sorted((p.step, str(p.value)) for p in self.history(run, key))
                    for key in run.data.metrics
                },
                self.files(run.info.run_id),
            )
            for name, run in self.runs(parent).items()
        }

    def history(self, run: Any, key: str) -> list[Any]:
        return list(self.client.get_metric_history(run.info.run_id, key))

    def files(self, run_id: str, folder: str = "") -> list[str]:
        found: list[str] = []
        for item in self.client.list_artifacts(run_id, folder):
            found += self.files(run_id, item.path) if item.is_dir else [item.path]
        return sorted(found)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    root = tmp_path_factory.mktemp("store")
    folder, uri = root / "run", default_uri(root)
    write_run(folder, uri)
    sink = MlflowSink(folder, no_warning)
    sink.start()
    stored = sink.close(timeout_s=120)
    assert stored is not None
    import mlflow

    return Live(folder, uri, stored, mlflow.MlflowClient(tracking_uri=uri))


def test_run_arrives_complete(live: Live) -> None:
    assert stored_run(live.folder) == live.stored
    runs = live.runs(live.stored.run_id)
    assert set(runs) == {"N=05 sre2l s0", "N=05 client=00", "N=05 client=01", "N=05 ipc=010"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    main = runs["N=05 sre2l s0"]
    assert main.data.params == flatten(CONFIG)
    assert main.data.metrics["acc_mean/ipc_010"] == 90.5
    assert main.data.metrics["odd _name_"] == 1
    assert math.isnan(main.data.metrics["none"])
    assert "inf" not in main.data.metrics
    assert live.history(main, "phase_seconds/recover")[0].step == 2
    assert live.files(main.info.run_id) == ["config/config.yaml", "figures/set.png"]
    tags = main.data.tags
    assert tags["role"] == "experiment"
    assert tags["phase"] == "done"
    assert tags["mlflow.user"]


def test_nested_runs_carry_role_and_tags_of_the_run(live: Live) -> None:
    runs = live.runs(live.stored.run_id)
    ipc, client = runs["N=05 ipc=010"], runs["N=05 client=01"]
    assert (ipc.data.tags["role"], client.data.tags["role"]) == ("ipc", "client")
    assert ipc.data.tags["sweep_id"] == client.data.tags["sweep_id"] == "s1"
    assert ipc.data.params == {"ipc": "10", "num_clients": "5"}
    curve = [(point.step, point.value) for point in live.history(client, "teacher/val_acc")]
    assert sorted(curve) == [(e, 10.0 * e + 1) for e in range(20)]


def test_seeds_with_equal_accuracy_at_one_step_are_all_kept(live: Live) -> None:
    run = live.runs(live.stored.run_id)["N=05 ipc=010"]
    values = [point.value for point in live.history(run, "acc_vs_clients")]
    assert sorted(values) == [90.0, 90.0, 91.0]


def test_original_times_are_kept(live: Live) -> None:
    events = [event for event, _ in read_events(live.folder / "tracking.jsonl")]
    main = live.client.get_run(live.stored.run_id)
    assert (main.info.start_time, main.info.end_time) == (events[0]["time"], events[-1]["time"])


@pytest.mark.parametrize("loss", ["nothing", "state", "offset"])
def test_delivering_again_changes_nothing(live: Live, loss: str) -> None:
    before = live.contents(live.stored.run_id)
    state = live.folder / "mlflow.json"
    if loss == "state":
        state.unlink()
    if loss == "offset":
        state.write_text(json.dumps({**json.loads(state.read_text()), "offset": 0}))
    assert deliver(live.folder, warn=no_warning) == live.stored
    assert live.contents(live.stored.run_id) == before


def test_long_run_goes_in_batches_and_continues(live: Live, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start(experiment="fedistill-digits", run_name="long", tags={}, uri=live.uri)
    journal.params({f"p{i:03}": i for i in range(250)})
    journal.curve("loss", [(i, 1 / (1 + i)) for i in range(2500)])
    stored = deliver(tmp_path)
    journal.metrics({"loss": 0.0}, step=2500)
    assert deliver(tmp_path) == stored
    run = live.client.get_run(stored.run_id)
    assert run.info.status == "RUNNING", "only an end event ends a run"
    assert len(run.data.params) == 250
    assert [p.step for p in live.history(run, "loss")] == list(range(2501))


def test_sink_sends_what_is_written_while_it_follows(live: Live, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start(experiment="fedistill-digits", run_name="follow", tags={}, uri=live.uri)
    sink = MlflowSink(tmp_path, no_warning)
    sink.start()
    wait_until(lambda: stored_run(tmp_path) is not None)
    with pytest.raises(UserError, match="another process"):
        deliver(tmp_path)
    journal.metrics({"a": 1.0})
    journal.end("FAILED")
    stored = sink.close(timeout_s=30)
    assert stored is not None
    run = live.client.get_run(stored.run_id)
    assert (run.info.status, run.data.metrics) == ("FAILED", {"a": 1.0})


def test_resumed_run_stays_one_run_without_double_points(live: Live, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for attempt in range(2):
        journal = Journal(tmp_path)
        journal.start(experiment="fedistill-digits", run_name="again", tags={}, uri=live.uri)
        journal.params({"seed": 0})
        journal.curve("a", [(1, 5.0), (1, 5.0), (2, math.nan)][: 2 + attempt])
        if attempt == 0:
            journal.end("KILLED")
            killed = deliver(tmp_path)
    assert deliver(tmp_path) == killed
    run = live.client.get_run(killed.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["resumed"] == "true"
    assert [p.step for p in live.history(run, "a")] == [1, 1, 2]


def test_a_nested_run_takes_the_name_it_is_given_last(live: Live, tmp_path: Path) -> None:
    """A line of a sweep is named by what tells it from the others, of which there may be more."""
    journal = Journal(tmp_path)
    journal.start(experiment="fedistill-digits", run_name="names", tags={}, uri=live.uri)
    stored = None
    for name in ("IPC 010", "sre2l, IPC 010", "sre2l, IPC 010"):
        journal.child("line/one", name, "line")
        journal.tags({"line": name}, "line/one")
        stored = deliver(tmp_path)
    assert stored is not None
    (line,) = live.client.search_runs(
        [stored.experiment_id], f"tags.`mlflow.parentRunId` = '{stored.run_id}'"
    )
    assert line.info.run_name == line.data.tags["line"] == "sre2l, IPC 010"


def test_server_down_warns_once_and_the_run_is_delivered_later(live: Live, tmp_path: Path) -> None:
    warnings: list[str] = []
    uri = f"http://ann:s3cret@127.0.0.1:{closed_port()}"
    journal = write_run(tmp_path, uri, name="later")
    sink = MlflowSink(tmp_path, warnings.append)
    sink.start()
    wait_until(lambda: bool(warnings))
    journal.metrics({"after": 1.0})
    began = time.monotonic()
    assert sink.close(timeout_s=10) is None
    assert time.monotonic() - began < 1
    assert len(warnings) == 1
    assert "refused" in warnings[0]
    assert f"fedistill track {tmp_path}" in warnings[0]
    with pytest.raises(UserError, match="refused") as failure:
        deliver(tmp_path)

    stored = deliver(tmp_path, live.uri)
    expected = live.contents(live.stored.run_id)["N=05 sre2l s0"]
    status, params, metrics, files = live.contents(stored.run_id)["later"]
    assert metrics.pop("after") == [(0, "1.0")]
    assert (status, params, metrics, files) == expected
    assert len(live.runs(stored.run_id)) == 4
    assert "s3cret" not in str([warnings, failure.value]) + all_text(tmp_path)


def test_store_that_hangs_does_not_hang_the_run(tmp_path: Path, live: Live) -> None:
    warnings: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        write_run(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        sink = MlflowSink(tmp_path, warnings.append)
        sink.start()
        began = time.monotonic()
        assert sink.close(timeout_s=0.5) is None
        assert time.monotonic() - began < 2
    assert len(warnings) == 1
    assert "0.5 s" in warnings[0]


def test_sink_that_was_never_started_closes(tmp_path: Path) -> None:
    assert MlflowSink(tmp_path, no_warning).close(timeout_s=1) is None


def test_line_cut_short_by_a_crash_is_skipped(live: Live, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start(experiment="fedistill-digits", run_name="cut", tags={}, uri=live.uri)
    journal.metrics({"a": 1.0})
    with journal.path.open("a") as file:
        file.write('{"event": "metrics", "time": 1, "ru')
    assert deliver(tmp_path).run_id
    Journal(tmp_path).metrics({"b": 2.0})
    run = live.client.get_run(deliver(tmp_path).run_id)
    assert run.data.metrics == {"a": 1.0, "b": 2.0}


def test_missing_artefact_is_reported_and_the_rest_arrives(live: Live, tmp_path: Path) -> None:
    warnings: list[str] = []
    journal = Journal(tmp_path)
    journal.start(experiment="fedistill-digits", run_name="gone", tags={}, uri=live.uri)
    journal.artifact(tmp_path / "gone.txt")
    journal.metrics({"a": 1.0})
    stored = deliver(tmp_path, warn=warnings.append)
    assert live.client.get_run(stored.run_id).data.metrics == {"a": 1.0}
    assert ["gone.txt" in line for line in warnings] == [True]


def test_deleted_experiment_is_explained(live: Live, tmp_path: Path) -> None:
    experiment = live.client.create_experiment("deleted")
    live.client.delete_experiment(experiment)
    Journal(tmp_path).start(experiment="deleted", run_name="r", tags={}, uri=live.uri)
    with pytest.raises(UserError, match="restore"):
        deliver(tmp_path)


def test_store_leaves_nothing_beside_the_database(live: Live) -> None:
    names = {path.name for path in live.folder.parent.iterdir()}
    assert {"mlflow.db", "mlartifacts", "run"} <= names
    assert not (Path.cwd() / "mlruns").exists()


def all_text(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline, "nothing happened for 30 s"
        time.sleep(0.02)
