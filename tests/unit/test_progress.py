import io
import json
import multiprocessing
import time
from pathlib import Path

import pytest
from rich.console import Console

from fedistill import display, progress
from fedistill.display import ProgressDisplay, format_seconds
from fedistill.progress import Event, Progress


def events_in(path: Path) -> list[Event]:
    events = [Event.from_line(line) for line in path.read_bytes().splitlines()]
    assert None not in events
    return [event for event in events if event is not None]


def event(who: str, stage: str, done: int, total: int, at: float, note: str = "") -> bytes:
    return Event(who, stage, done, total, note, at).to_line()


def screen(path: Path, *, live: bool, clients: int = 0, height: int = 24) -> str:
    """What the display shows of a finished file."""
    console = Console(
        file=io.StringIO(), width=100, height=height, record=True, force_terminal=live
    )
    with ProgressDisplay(path, console, clients=clients, live=live):
        pass
    return console.export_text()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv(progress.ENV, raising=False)
    return tmp_path / "progress.jsonl"


def test_event_survives_its_line():
    told = Event("client 3", "squeeze", 2, 5, 'loss "1.5" \N{GREEK SMALL LETTER ALPHA}', 12.5)
    assert Event.from_line(told.to_line()) == told


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b'{"who": "x"}', b"\xff\xfe", b'"text"'])
def test_broken_line_is_skipped(line):
    assert Event.from_line(line) is None


def test_longest_line_stays_below_an_atomic_write(path):
    long = "\N{GRINNING FACE}" * 1000
    Progress(long, path).report(long, 1, 2, long)
    assert len(path.read_bytes()) < 4096
    assert len(events_in(path)) == 1


def test_reports_go_nowhere_without_the_variable(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Progress("server").report("relabel", 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_variable_names_the_file(path, monkeypatch):
    monkeypatch.setenv(progress.ENV, str(path))
    Progress("server").report("relabel", 1, 2)
    assert [e.who for e in events_in(path)] == ["server"]


def test_callback_gets_events_without_a_file(path):
    seen: list[Event] = []
    Progress("server", on_event=seen.append).report("relabel", 1, 2, "half")
    assert [(e.stage, e.done, e.note) for e in seen] == [("relabel", 1, "half")]


def test_reports_are_throttled_but_first_and_last_are_written(path):
    reporter = Progress("client 0", path)
    for done in range(1001):
        reporter.report("squeeze", done, 1000)
    counts = [e.done for e in events_in(path)]
    assert counts[0] == 0
    assert counts[-1] == 1000
    assert len(counts) < 20


def test_last_word_on_a_stage_that_ended_early_is_written(path):
    reporter = Progress("client 0", path)
    reporter.report("recover", 0, 100)
    reporter.report("recover", 7, 100)
    reporter.report("send", 0, 1)
    assert [(e.stage, e.done) for e in events_in(path)] == [
        ("recover", 0),
        ("recover", 7),
        ("send", 0),
    ]


def test_a_file_that_cannot_be_written_does_not_end_the_work(tmp_path):
    Progress("client 0", tmp_path / "missing" / "file").report("squeeze", 1, 2)


def test_track_yields_all_and_reports(path):
    reporter = Progress("server", path)
    assert list(reporter.track("relabel", range(3))) == [0, 1, 2]
    assert list(reporter.track("evaluate", iter("ab"), total=2)) == ["a", "b"]
    stages = [(e.stage, e.done) for e in events_in(path)]
    assert stages[0] == ("relabel", 0)
    assert ("relabel", 3) in stages
    assert stages[-1] == ("evaluate", 2)
    with pytest.raises(TypeError, match="total"):
        list(reporter.track("evaluate", iter("ab")))


def write_many(path: Path, number: int) -> None:
    for done in range(200):
        Progress(f"client {number}", path).report("squeeze", done, 200, "x" * 200)


def test_lines_of_several_processes_do_not_mix(path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(events_in(path)) == 800


def test_reader_waits_for_the_rest_of_a_line(path):
    tail = display._Tail(path)
    assert tail.events() == []
    line = event("server", "relabel", 1, 2, at=0.0)
    path.write_bytes(b"not json\n" + line[:10])
    assert tail.events() == []
    with path.open("ab") as file:
        file.write(line[10:])
    assert [e.done for e in tail.events()] == [1]
    assert tail.events() == []


def test_plain_output_has_stage_changes_and_no_control_codes(path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = [event("client 1", "squeeze", done, 9, at=100.0 + done) for done in range(10)]
    lines += [event("client 1", "recover", done, 30, at=110.0 + done) for done in range(30)]
    path.write_bytes(b"".join(lines))
    file = io.StringIO()
    with ProgressDisplay(path, Console(file=file, width=60)) as display:
        display.log("[INFO] a log line that is much longer than the sixty columns of the console")
    out = file.getvalue()
    assert "\x1b" not in out
    assert "[INFO] a log line that is much longer than the sixty columns of the console\n" in out
    shown = [line for line in out.splitlines() if line.startswith("client")]
    assert shown == [
        "client 1  squeeze  0%  (0/9)",
        "client 1  squeeze  100%  (9/9)",
        "client 1  recover  0%  (0/30)",
        "client 1  recover  33%  (10/30)  ETA 0:20",
        "client 1  recover  66%  (20/30)  ETA 0:10",
    ]


def test_table_has_a_line_for_everyone_while_they_are_few(path):
    now = time.time()
    lines = [event("server", "wait", 0, 5, at=now)]
    for number in range(5):
        lines.append(event(f"client {number}", "squeeze", 0, 20, at=now - 10))
        lines.append(event(f"client {number}", "squeeze", 5 * number, 20, now, "loss 1.5"))
    path.write_bytes(b"".join(lines))
    rows = [line.split() for line in screen(path, live=True).splitlines() if line.strip()]
    rows = rows[-6:]
    assert [row[:3] for row in rows[:5]] == [["client", str(n), "squeeze"] for n in range(5)]
    assert rows[5][:2] == ["server", "wait"]
    assert [row[-4:] for row in rows[1:3]] == [
        ["25%", "0:30", "loss", "1.5"],
        ["50%", "0:10", "loss", "1.5"],
    ]
    assert "100%" in rows[4]
    assert "done" in rows[4]


def test_table_sums_up_many_clients(path):
    now = time.time()
    lines = [event(f"client {n}", "recover", 9, 9, at=now) for n in range(20)]
    lines += [event(f"client {n}", "squeeze", 1, 9, at=now) for n in range(20, 40)]
    lines += [event("server", "wait", 0, 50, at=now)]
    path.write_bytes(b"".join(lines))
    rows = screen(path, live=True, clients=50, height=18).rstrip().splitlines()[-14:]
    assert [row.split()[1] for row in rows[:12]] == [str(n) for n in range(20, 32)]
    assert rows[12].startswith("server")
    summary = "clients: 20 done with recover, 8 busy with squeeze, 10 waiting"
    assert rows[13].strip() == summary


def test_display_follows_a_live_writer(path):
    console = Console(file=io.StringIO(), width=100)
    with ProgressDisplay(path, console, live=False):
        Progress("server", path).report("relabel", 0, 2)
        time.sleep(3 * display.READ_EVERY_S)
        assert "relabel" in console.file.getvalue()  # type: ignore[attr-defined]


def test_written_lines_are_json(path):
    Progress("server", path).report("relabel", 0, 2)
    assert json.loads(path.read_text())["stage"] == "relabel"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3661, "1:01:01")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
