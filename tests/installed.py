"""The folder docker/, and what the installed programs say of themselves."""

import contextlib
import io
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"


@cache
def help_of(*command: str) -> str:
    """What an installed program says of its options; here, where most of it is loaded already."""
    program, *_ = entry_points(group="console_scripts", name=command[0])
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        patch.setattr(sys, "argv", [*command, "--help"])
        program.load()()
    return said.getvalue()
