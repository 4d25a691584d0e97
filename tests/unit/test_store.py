"""The artefact store: a whole artefact or none, and never the end of a run."""

import errno
import json
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import run_python
from safetensors.torch import save_file

from fedistill import processes, store
from fedistill.errors import OutputError
from fedistill.store import VARIABLE, Artefact, Store

KEY = {"seed": 0, "recipe": {"lr": 0.1, "scale": (0.5, 1.0)}}
PIXELS = torch.arange(48, dtype=torch.uint8).view(3, 1, 4, 4)
MADE = Artefact({"images": PIXELS, "steps": torch.tensor(7)}, {"curve": [[0, 2.5], [9, 0.1]]})


def kept(folder: Path) -> Path:
    """The file of the one artefact in a store."""
    (path,) = folder.iterdir()
    return path


def never() -> Artefact:
    raise AssertionError("it should have been read")


@pytest.fixture
def full(tmp_path: Path) -> Store:
    """A store that holds `MADE` under `KEY`."""
    found = Store(tmp_path / "new" / "store")
    found.put("share", KEY, MADE)
    return found


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.1, float("inf"), float("nan"), -0.0]),
        torch.tensor(2**60),
        torch.tensor([True, False]),
        torch.tensor([1.5, -2.0]).bfloat16(),
        torch.empty(0, 1, 4, 4, dtype=torch.uint8),
        torch.arange(6.0).view(2, 3).T,
        torch.arange(9)[3:5],
    ],
    ids=["floats", "a number", "booleans", "bfloat16", "no images", "transposed", "a part"],
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, tensor: torch.Tensor):
    Store(tmp_path).put("share", KEY, Artefact({"a": tensor, "b": tensor}, {}))
    artefact = Store(tmp_path).get("share", KEY)
    assert artefact is not None
    for found in artefact.tensors.values():
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert store.digest({"": found}) == store.digest({"": tensor})


def test_notes_come_back_and_say_that_they_were_found(full: Store):
    artefact = full.get("share", KEY)
    assert artefact is not None
    assert artefact.notes == MADE.notes
    assert artefact.found
    assert not MADE.found


def test_what_is_there_is_read_and_what_is_not_is_made_once(tmp_path: Path):
    here = Store(tmp_path)
    first = here.recall("share", KEY, lambda: MADE)
    again = here.recall("share", KEY, never)
    assert (first.found, again.found) == (False, True)
    assert torch.equal(again.tensors["images"], PIXELS)
    assert again.notes == first.notes
    assert first.notes["seconds"] >= 0


def warns(*texts: str) -> Callable[[], Artefact]:
    def make() -> Artefact:
        for text in texts:
            logging.getLogger("fedistill.losses.cmi").warning("it is %s", text)
        return MADE

    return make


def test_what_was_warned_of_is_told_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    here = Store(tmp_path)

    def whole() -> Artefact:
        logging.getLogger("fedistill").info("no warning")
        logging.getLogger("other").warning("not ours")
        return here.recall("batch", KEY, warns("a", "b", "a"))

    handlers = list(logging.getLogger("fedistill").handlers)
    told = []
    for stage, make in (("share", whole), ("share", never), ("batch", never)):
        caplog.clear()
        here.recall(stage, KEY, make)
        ours = [it.getMessage() for it in caplog.records if it.name.startswith("fedistill")]
        told.append(list(dict.fromkeys(ours)))
    assert told == [["it is a", "it is b"]] * 3
    assert logging.getLogger("fedistill").handlers == handlers


def test_warnings_of_other_threads_are_not_of_an_artefact(tmp_path: Path):
    def make() -> Artefact:
        other = threading.Thread(target=warns("elsewhere"))
        other.start()
        other.join()
        return warns("here")()

    assert Store(tmp_path).recall("share", KEY, make).notes["warnings"] == ["it is here"]


def test_the_versions_of_other_libraries_are_found_without_importing_them():
    code = "import sys; from fedistill import store; print(*store._versions())\n"
    code += "print({'torchvision', 'sklearn'} & sys.modules.keys())"
    versions, imported = run_python(code).splitlines()
    assert re.fullmatch(r"torchvision \d[^ ]* scikit-learn \d[^ ]*", versions)
    assert imported == "set()"


def test_stage_and_every_part_of_the_key_tell_artefacts_apart(full: Store):
    assert full.get("teacher", KEY) is None
    for other in ({**KEY, "seed": 1}, {"seed": 0}, {**KEY, "more": None}, {}):
        assert full.get("share", other) is None
    assert full.get("share", dict(reversed(KEY.items()))) is not None


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("_code", lambda stage: "other"),
        ("torch.__version__", "other"),
        ("_versions", lambda: ["torchvision other"]),
    ],
)
def test_another_version_finds_nothing(
    full: Store, name: str, other: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(f"fedistill.store.{name}", other)
    assert full.get("share", KEY) is None


def test_a_stage_is_hashed_with_all_the_code_it_runs():
    """Follow the imports of each stage's files; what only says or refuses something is left out."""
    package = Path(store.__file__).parent
    harmless = {"errors", "config", "registry", "rules"}
    for patterns in store._SOURCES.values():
        found = {path for pattern in patterns for path in package.glob(f"{pattern}.py")}
        hashed = {".".join(path.relative_to(package).with_suffix("").parts) for path in found}
        assert all(list(package.glob(f"{pattern}.py")) for pattern in patterns)
        for path in found:
            imported = re.findall(
                r"^ *from fedistill(?:\.([\w.]+))? import ([\w, ]+)", path.read_text(), re.M
            )
            for module, names in imported:
                inside = [n for n in names.split(", ") if (package / f"{n}.py").is_file()]
                targets = {module} if module and not (package / module).is_dir() else {*inside}
                missing = targets - hashed - harmless
                assert not missing, f"{path.name} imports {missing}"


def test_the_key_can_be_read_from_the_file(full: Store):
    assert full.folder is not None
    header = kept(full.folder).read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert json.loads(metadata["key"]) == json.loads(json.dumps(KEY))


def test_without_a_folder_nothing_is_kept():
    nowhere = Store(None)
    nowhere.put("share", KEY, MADE)
    assert nowhere.get("share", KEY) is None
    assert nowhere.opened() == nowhere


def swap(old: bytes, new: bytes) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        assert content.count(old) == 1
        assert len(old) == len(new)
        path.write_bytes(content.replace(old, new))

    return damage


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 9),
    "empty": lambda path: os.truncate(path, 0),
    "other bytes": lambda path: path.write_bytes(b"garbage " * 99),
    "one pixel": swap(bytes(range(48)), bytes([255, *range(1, 48)])),
    "one note": swap(b"2.5", b"2.4"),
    "no notes": lambda path: save_file(dict(MADE.tensors), path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_again_with_a_warning(
    full: Store, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
):
    assert full.folder is not None
    path = kept(full.folder)
    damage(path)
    assert full.get("share", KEY) is None
    assert f"{path} is damaged" in caplog.text
    assert not full.recall("share", KEY, lambda: MADE).found
    assert full.recall("share", KEY, never).found


def test_what_cannot_be_replaced_is_made_each_time(full: Store, caplog: pytest.LogCaptureFixture):
    assert full.folder is not None
    a_folder(kept(full.folder))
    for _ in range(2):
        assert not full.recall("share", KEY, lambda: MADE).found
    assert [path.is_dir() for path in full.folder.iterdir()] == [True]
    assert "cannot be written" in caplog.text


def test_writers_and_readers_at_once_see_whole_artefacts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    here, start = Store(tmp_path / "store"), threading.Barrier(6)
    big = Artefact({"weights": torch.rand(200_000)}, {})
    found: list[bool] = []

    def work(writes: bool) -> None:
        start.wait()
        for _ in range(10):
            if writes:
                here.put("teacher", KEY, big)
            elif (artefact := here.get("teacher", KEY)) is not None:
                found.append(torch.equal(artefact.tensors["weights"], big.tensors["weights"]))

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found)
    assert here.get("teacher", KEY) is not None
    assert kept(tmp_path / "store").suffix == ".safetensors"
    assert "damaged" not in caplog.text


def test_a_full_disk_leaves_a_warning_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    made = Store(tmp_path).recall("share", KEY, lambda: MADE)
    assert made.tensors is MADE.tensors
    assert "no space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_entered_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("safetensors.safe_open", forbidden)
    monkeypatch.setattr(Path, "mkdir", forbidden)
    with caplog.at_level(logging.WARNING):
        assert not Store(tmp_path / "store").recall("share", KEY, lambda: MADE).found
    assert "Permission denied" in caplog.text


def test_opening_makes_the_folder_and_its_path_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    opened = Store(Path("a/b")).opened()
    assert opened.folder == tmp_path / "a" / "b"
    assert opened.folder.is_dir()
    assert Store(Path("a/b")).opened() == opened


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Store(tmp_path).opened()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(store, "TemporaryFile", full)
    with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
        Store(tmp_path).opened()


@pytest.mark.parametrize("below", ["", "store"])
def test_a_file_is_no_store(tmp_path: Path, below: str):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt.* choose another --store"):
        Store(path / below).opened()
    assert path.read_text() == "mine"


def test_the_variable_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert Store.from_environment() == Store(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    assert Store.from_environment() == Store(None)
    monkeypatch.delenv(VARIABLE)
    assert Store.from_environment() == Store(None)


def test_the_processes_of_a_simulation_inherit_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, "/somewhere")
    assert processes.environment(tmp_path, "/tmp/x", {})[VARIABLE] == "/somewhere"
