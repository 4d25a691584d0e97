import re
from dataclasses import replace

import pytest
from fakes import tiny_config

from fedistill import config_file, deployment, flower_commands, progress, results, tracking
from fedistill.errors import ConfigError, OutputError, RunError
from fedistill.flower_commands import FlowerCommands
from fedistill.flower_output import Outcome, parse_status


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("FLWR_HOME", str(folder))
    (folder / "config.toml").write_text(
        '[superlink]\ndefault = "clinic"\n[superlink.clinic]\naddress = "10.0.0.1:8000"\n'
        "[superlink.local]\noptions.num-supernodes = 2\n"
    )
    return folder


def test_a_superlink_is_known_by_flowers_own_file(home):
    deployment.check_superlink("clinic")
    with pytest.raises(ConfigError, match=r"(?s)did you mean 'clinic'.*root-certificates"):
        deployment.check_superlink("clinik")
    with pytest.raises(ConfigError, match="no SuperLink called 'local' with an address"):
        deployment.check_superlink("local")
    (home / "config.toml").unlink()
    with pytest.raises(ConfigError, match="it names none"):
        deployment.check_superlink("clinic")
    (home / "config.toml").write_text("[superlink")
    with pytest.raises(ConfigError, match="cannot be read"):
        deployment.check_superlink("clinic")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"baselines": ["random", "ensemble"]}, "baselines holds random, which takes real images"),
        ({"baselines": ["full_data"]}, "accepted: hard_label, ensemble"),
        ({"student": {"ranking": True}}, "student.ranking is true"),
        ({"tracking": {"uri": "http://me:secret@host:5000"}}, "MLFLOW_TRACKING_PASSWORD"),
        ({"sweep": {"clients": [1, 2]}}, "sweep=null"),
        ({"distill": {"name": "lic"}}, "distill.name lic, with its options, makes images that"),
        ({"distill": {"init": "real"}}, "privacy: {allow_real_images: true}"),
    ],
)
def test_what_only_a_simulation_can_do_is_refused(sections, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        deployment.check(tiny_config(**sections))
    assert "secret" not in str(caught.value)


def test_a_method_of_real_images_is_for_devices_where_the_config_allows_it():
    for distill in ({"init": "noise"}, {"name": "lic"}):
        deployment.check(tiny_config(distill=distill, privacy={"allow_real_images": True}))


@pytest.mark.parametrize("name", ["../etc", "a/b", "/abs", "", ".", "a\n", "x" * 101, "..", "-x"])
def test_a_path_is_no_name_of_a_run(name):
    with pytest.raises(ConfigError, match="accepted: letters"):
        deployment.folder_of(name)


def test_runs_lie_where_the_server_says(monkeypatch, tmp_path):
    monkeypatch.setenv(deployment.RUNS, str(tmp_path))
    assert deployment.folder_of("mnist-0a1b") == tmp_path / "mnist-0a1b"


def test_a_folder_on_the_server_goes_on_with_the_same_run_alone(tmp_path):
    place, folder = deployment.Place, tmp_path / "run"
    assert deployment.open_on_server(folder, "name: a\n") is place.NEW
    assert deployment.open_on_server(folder, "name: a\n") is place.CUT
    results.write_failure(folder, ConfigError("no"))
    assert deployment.open_on_server(folder, "name: a\n") is place.FAILED
    assert deployment.open_on_server(folder, "name: a\n") is place.CUT
    with pytest.raises(OutputError, match="another run"):
        deployment.open_on_server(folder, "name: b\n")
    results.write_json(folder / results.RESULT, {})
    assert deployment.open_on_server(folder, "name: a\n") is place.DONE


def test_an_output_folder_is_continued_by_the_same_command_alone(tmp_path):
    output = tmp_path / "my run!"
    one, two = tiny_config(), tiny_config(seed=1)
    note = deployment._claim(output, one, "clinic")
    assert re.fullmatch(r"my-run-[0-9a-f]{8}", note["name"])
    assert deployment._claim(output, one, "clinic") == note
    with pytest.raises(OutputError, match="another config"):
        deployment._claim(output, two, "clinic")
    with pytest.raises(OutputError, match="SuperLink 'clinic'"):
        deployment._claim(output, one, "other")
    (output / results.RESULT).write_text("{}")
    with pytest.raises(OutputError, match="has its results"):
        deployment._claim(output, one, "clinic")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        deployment._claim(tmp_path / "taken", one, "clinic")


def test_results_come_from_the_servers_folder_where_it_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv(deployment.RUNS, str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output = tmp_path / "out"
    output.mkdir()
    assert "no MLflow server is named" in deployment.fetch(tiny_config(), output, "mnist-1")
    there = tmp_path / "runs" / "mnist-1"
    results.write_json(there / results.RESULT, {"name": "x"})
    (there / deployment.REPLIES).mkdir()
    (there / ".fedistill.lock").touch()
    assert deployment.fetch(tiny_config(), output, "mnist-1") == ""
    assert [path.name for path in output.iterdir()] == [results.RESULT]


class Ended(FlowerCommands):
    """A SuperLink whose run has ended well; counts how often an app is submitted."""

    submitted = 0

    def status(self, run_id: str) -> str:
        return "finished:completed"

    def follow(self, run_id, on_line):
        return Outcome("completed", "", run_id)

    def submit(self, app, options, on_line, on_run=lambda run_id: None):
        Ended.submitted += 1
        on_run(f"{Ended.submitted}")
        return Outcome("completed", "", f"{Ended.submitted}")


@pytest.fixture
def ended(home, tmp_path, monkeypatch):
    """The operator's folder of a run that has ended well, with an MLflow server."""
    monkeypatch.setattr(deployment, "FlowerCommands", Ended)
    monkeypatch.setattr(Ended, "submitted", 0)
    monkeypatch.setattr(deployment, "stage_app", lambda work: work)
    monkeypatch.setenv(deployment.RUNS, str(tmp_path / "runs"))
    output = tmp_path / "my run"
    note = deployment._claim(output, TRACKED, "clinic")
    results.write_json(output / "deployment.json", {**note, "run_id": "0"})
    return output


TRACKED = tiny_config(tracking={"enabled": True, "uri": "http://127.0.0.1:1"})


def test_a_run_that_mlflow_lacks_is_submitted_again_to_be_sent(ended, monkeypatch):
    def fetch(uri, tags, folder, last):
        if not Ended.submitted:  # the ServerApp could not deliver when it had ended
            return None
        results.write_json(folder / last, {"name": "x"})
        return tracking.StoredRun(uri, "1", "r")

    monkeypatch.setattr(tracking, "fetch", fetch)
    lines = list[str]()
    assert deployment.run(TRACKED, ended, "clinic", lines.append).status == "completed"
    assert Ended.submitted == 1
    assert "knows no such run; the ServerApp is asked to send the results again" in lines[0]
    assert results.read_json(ended / results.RESULT)["mlflow"]["run_id"] == "r"


def test_results_that_cannot_be_reached_are_not_lost(ended, monkeypatch):
    monkeypatch.setattr(tracking, "fetch", lambda *args, **options: None)
    words = rf"(?s)\$FEDISTILL_RUNS/my-run-\w+ on the machine.*repeat .* --output '{ended}'"
    with pytest.raises(RunError, match=words):
        deployment.run(TRACKED, ended, "clinic", lambda line: None)
    assert Ended.submitted == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    untold = replace(TRACKED, tracking=replace(TRACKED.tracking, uri=None))
    (ended / results.CONFIG).write_text(config_file.dump(untold))
    with pytest.raises(RunError, match="no MLflow server is named"):
        deployment.run(untold, ended, "clinic", lambda line: None)
    assert Ended.submitted == 1  # nobody here could see what it would send


def test_a_log_carries_progress_and_failure():
    lines = list[str]()
    worker = progress.Progress("server", on_event=progress.to_log(lines.append))
    for done in range(101):
        worker.report("label", done, 100)
    worker.report("evaluate", 0, 10)
    assert len(lines) == 3  # the first, the last, the next stage; not a hundred
    event = progress.Event.from_line(progress.from_log("INFO :      " + lines[1]) or b"")
    assert event is not None
    assert (event.who, event.stage, event.done, event.finished) == ("server", "label", 100, True)
    assert progress.from_log("progress: no event") is None
    assert progress.from_log("INFO : something else") is None

    line = "INFO :      " + results.failure_line(ConfigError("no\nsuch key"))
    assert results.failure_from_log(line) == {
        "error": "ConfigError", "user_error": True, "message": "no\nsuch key",
    }  # fmt: skip
    assert results.failure_from_log("the run failed: {}") is None
    assert results.failure_from_log("the run failed: {") is None
    # What a device says stands in a sentence, or is indented: it gives no orders.
    for told in ("    ", "WARNING :   ", "client 1 is x: "):
        assert results.failure_from_log(told + line.removeprefix("INFO :      ")) is None
        assert progress.from_log(told + lines[1]) is None


def test_status_is_read_from_flowers_list():
    answer = '{"runs": [{"run-id": "7", "status": "running"}]}'
    assert parse_status(answer, "7") == "running"
    assert parse_status(answer, "8") == ""
    assert parse_status("Error: no such SuperLink", "7") == ""


UNKNOWN = '{"success": false, "error-message": "Using SuperLink: x [code: 16] Run ID not found."}'
AWAY = '{"success": false, "error-message": "Connection to the SuperLink is unavailable."}'
LOST = '{"success": false, "error-message": "SuperLink connection \'x\' not found."}'
RUNNING = '{"success": true, "runs": [{"run-id": "7", "status": "running"}]}'


@pytest.mark.parametrize(
    ("answers", "status"),
    [([RUNNING], "running"), ([UNKNOWN], ""), (["", AWAY, LOST, "Error", RUNNING], "running")],
)
def test_a_superlink_that_says_nothing_is_not_one_that_knows_no_run(
    tmp_path, monkeypatch, answers: list[str], status: str
):
    monkeypatch.setattr(flower_commands, "_AGAIN_S", 0.0)
    told = iter(answers)
    monkeypatch.setattr(FlowerCommands, "_list", lambda self, run_id: next(told))
    assert FlowerCommands("home", tmp_path, {}).status("7") == status
    assert list(told) == []


def test_a_superlink_that_stays_away_ends_the_wait_for_a_status(tmp_path, monkeypatch):
    monkeypatch.setattr(flower_commands, "_AGAIN_S", 0.0)
    monkeypatch.setattr(FlowerCommands, "_list", lambda self, run_id: AWAY)
    commands = FlowerCommands("home", tmp_path, {}, patience_s=0.05)
    with pytest.raises(RunError, match=r"whether run 7 goes on; it says: .*is unavailable.*repeat"):
        commands.status("7")
    elsewhere = FlowerCommands("home", tmp_path, {}, patience_s=0.05, again="do it with --output x")
    with pytest.raises(RunError, match="do it with --output x when the SuperLink is back"):
        elsewhere.status("7")
