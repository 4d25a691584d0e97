"""What a run's log shows: warnings with all their lines, and nothing else."""

from pathlib import Path

from fedistill.runner import _Log

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
