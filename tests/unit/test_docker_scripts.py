"""The scripts that containers run, run as they are: register, healthy."""

import http.server
import subprocess
import sys
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from installed import DOCKER, help_of


def register(folder: Path, flwr: str, keys: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run register.sh with a stand-in for Flower's command."""
    (folder / "bin").mkdir()
    (folder / "keys").mkdir()
    command = folder / "bin" / "flwr"
    command.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{flwr}\n')
    command.chmod(0o755)
    for name, key in keys.items():
        (folder / "keys" / name).write_text(key)
    return subprocess.run(
        ["sh", DOCKER / "register.sh", folder / "keys", "superlink:8000", "/ca.crt"],
        env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "FLWR_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_all_public_keys_are_registered(tmp_path: Path) -> None:
    done = register(tmp_path, "", {"a.pub": "", "b.pub": "", "b.key": ""})
    assert (done.returncode, done.stdout) == (0, "a: registered\nb: registered\n")
    keys = tmp_path / "keys"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"supernode register {keys}/{name}.pub docker --name {name}" for name in "ab"
    ]
    written = tomllib.loads((tmp_path / "home" / "config.toml").read_text())
    expected = {"address": "superlink:8000", "root-certificates": "/ca.crt"}
    assert written == {"superlink": {"docker": expected}}
    assert "--name" in help_of("flwr", "supernode", "register")


def test_a_key_that_is_known_is_no_mistake(tmp_path: Path) -> None:
    done = register(tmp_path, 'echo "Error: Public key already in use" >&2; exit 1', {"a.pub": ""})
    assert (done.returncode, done.stdout) == (0, "a: known\n")


@pytest.mark.parametrize(
    ("flwr", "keys", "said"),
    [
        ('echo "no connection"; exit 1', {"a.pub": ""}, "a: refused\nno connection"),
        ("", {"a.key": ""}, "no public key (*.pub) in"),
    ],
)
def test_anything_else_is_a_mistake(
    tmp_path: Path, flwr: str, keys: dict[str, str], said: str
) -> None:
    done = register(tmp_path, flwr, keys)
    assert done.returncode == 1
    assert said in done.stderr


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("path", "code"), [("/health", 0), ("/busy", 1)])
def test_healthy_says_whether_an_address_answers(path: str, code: int) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        command = [sys.executable, DOCKER / "healthy.py", url]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code
        server.shutdown()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1  # nobody is there any more
    assert url in done.stderr
    assert "Traceback" not in done.stderr
