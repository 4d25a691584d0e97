"""Who holds a folder, as another process sees it."""

import os
from pathlib import Path

import pytest
from fakes import run_python

from fedistill.errors import OutputError
from fedistill.locking import exclusive


def test_a_second_sweep_is_told_who_holds_the_folder(tmp_path: Path):
    code = f"""
from pathlib import Path
from fedistill.errors import OutputError
from fedistill.locking import exclusive
try:
    with exclusive(Path({str(tmp_path)!r}), "the artefact store"):
        print("taken")
except OutputError as error:
    print(error)
"""
    with exclusive(tmp_path, "the artefact store"):
        told = run_python(code)
    assert f"the artefact store {tmp_path} is in use" in told
    assert f"process {os.getpid()} of" in told
    assert run_python(code).strip() == "taken"


def test_one_command_cannot_use_a_folder_for_two_things(tmp_path: Path):
    with (
        exclusive(tmp_path, "the folder"),
        pytest.raises(OutputError, match="for something else of this very command"),
        exclusive(tmp_path, "the artefact store"),
    ):
        pass
    with exclusive(tmp_path, "the folder"):
        pass


def test_a_holder_that_died_leaves_nothing_locked(tmp_path: Path):
    code = f"""
import os
from pathlib import Path
from fedistill.locking import exclusive
with exclusive(Path({str(tmp_path)!r}), "the folder"):
    print("held", flush=True)
    os._exit(0)
"""
    assert run_python(code).strip() == "held"
    assert (tmp_path / ".fedistill-owner.json").exists()
    with exclusive(tmp_path, "the folder"):
        pass
    assert not (tmp_path / ".fedistill-owner.json").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="cannot be written"),
        exclusive(tmp_path / "file", "the folder"),
    ):
        pass
