"""What a client finds in its store: everything that decides an artefact is in its key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import CONFIG, DM, NARROW, SHALLOW, SHARD, SPEC, assert_same, forbid_work, small, work
from fakes import tiny_tree

from fedistill import config_file
from fedistill.config import Config
from fedistill.images import ImageSet
from fedistill.store import VARIABLE
from fedistill.whitening import Whitening


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store that is in use."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "store"))
    return tmp_path / "store"


def test_what_was_made_before_is_read_bit_for_bit(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE)
    without = work()
    monkeypatch.setenv(VARIABLE, str(folder))
    first = work()
    forbid_work(monkeypatch)
    again = work()
    assert_same(first, without)
    assert_same(again, first)
    assert first.from_store == without.from_store == ()
    assert again.from_store == ("squeeze", "recover")
    assert again.seconds == first.seconds  # of the work, not of reading
    assert min(first.seconds.values()) > 0


def test_a_share_of_another_size_reuses_the_teachers(folder: Path):
    first, second = work(), work(counts=(3, 0, 0))
    assert second.from_store == ("squeeze",)
    assert torch.equal(
        first.teachers[0]["classifier.weight"], second.teachers[0]["classifier.weight"]
    )


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert work().from_store == ()
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_no_folder_does_not_stop_the_work(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    folder.write_text("a file")
    assert len(work().images) == 3
    assert "cannot be written" in caplog.text


def relabelled(shard: ImageSet) -> ImageSet:
    labels = shard.labels.clone()
    labels[0] = (labels[0] + 1) % 3
    return ImageSet(shard.images, labels)


def one_pixel_brighter(shard: ImageSet) -> ImageSet:
    images = shard.images.clone()
    images[0, 0, 0, 0] += 1
    return ImageSet(images, shard.labels)


DECIDES_BOTH: dict[str, dict[str, Any]] = {
    "seed": {"config": small(seed=1)},
    "epochs": {"config": small(teacher={"epochs": 1})},
    "teacher's crops": {"config": small(teacher={"shift": 0})},
    "width": {"config": small(model={"width": 5})},
    "precision": {"config": small(precision="bfloat16")},
    "partition": {"partition_id": 1},
    "a label": {"shard": relabelled(SHARD)},
    "a pixel": {"shard": one_pixel_brighter(SHARD)},
    "an image less": {"shard": SHARD.select(torch.arange(29))},
    "normalisation": {"spec": replace(SPEC, mean=(0.5,))},
    "mirroring": {"spec": replace(SPEC, flip=True)},
}
DECIDES_IMAGES: dict[str, dict[str, Any]] = {
    "iterations": {"config": small(distill={"iterations": 4})},
    "a term": {
        "config": small(distill={"regularizers": [{"name": "total_variation", "weight": 0.1}]})
    },
    "counts": {"counts": (2, 1, 1)},
    "attempt": {"attempt": 1},
    "made": {"made": ((1, 0, 0),)},
}
DECIDES_NOTHING: dict[str, dict[str, Any]] = {
    "name": {"config": small(name="another")},
    "student": {"config": small(student={"epochs": 3, "seeds": 2, "protocol": "sre2l"})},
    "relabel": {"config": small(relabel={"views": 5, "name": "own"})},
    "tracking": {"config": small(tracking={"enabled": True, "uri": "sqlite:///x.db"})},
    "clients": {"config": small(partition={"clients": 7})},
    "federation": {"config": small(federation={"min_clients": 2, "deadline_s": 5})},
    "baselines": {"config": small(baselines=["random"])},
    "other sizes": {"config": small(distill={"ipc": [3, 1]})},
    "another client's model": {"config": small(model=[NARROW, SHALLOW])},
    "the same network as backbone": {"config": small(teacher={"backbones": [NARROW]})},
    "one teacher, said aloud": {"config": small(teacher={"count": 1})},
}


@pytest.fixture(scope="module")
def base_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds what `work()` makes."""
    found = tmp_path_factory.mktemp("base") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(found))
        work()
    return found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        *((change, ()) for change in DECIDES_BOTH.values()),
        *((change, ("squeeze",)) for change in DECIDES_IMAGES.values()),
        *((change, ("squeeze", "recover")) for change in DECIDES_NOTHING.values()),
    ],
    ids=[*DECIDES_BOTH, *DECIDES_IMAGES, *DECIDES_NOTHING],
)
def test_the_key_holds_what_decides_an_artefact_and_no_more(
    base_store: Path,
    change: dict[str, Any],
    found: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(VARIABLE, str(base_store))
    monkeypatch.setattr("fedistill.store.Store.put", lambda *_: None)
    assert work(**change).from_store == found


def test_another_whitening_makes_other_artefacts(folder: Path):
    plain, one, other = (
        SPEC,
        *(
            replace(SPEC, zca=Whitening(torch.zeros(64), factor * torch.eye(64)))
            for factor in (1, 2)
        ),
    )
    for spec in (plain, one, other):
        assert work(spec=spec).from_store == ()
    assert work(spec=one).from_store == ("squeeze", "recover")


def test_the_number_of_threads_decides_the_rounding(
    base_store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, str(base_store))
    monkeypatch.setattr("fedistill.store.Store.put", lambda *_: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert work().from_store == ()


def test_images_depend_on_the_weights_that_were_sent_back(
    base_store: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, str(base_store))
    monkeypatch.setattr("fedistill.store.Store.put", lambda *_: None)
    (state,) = work().teachers
    assert work(teacher_states=[state]).from_store == ("recover",)
    bent = {**state, "classifier.bias": state["classifier.bias"] + 1e-3}
    assert work(teacher_states=[bent]).from_store == ()


def test_the_hash_of_a_config_knows_nothing_of_the_store(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    before = config_file.sha256(CONFIG)
    monkeypatch.setenv(VARIABLE, "/somewhere")
    assert config_file.sha256(small()) == before


def told(config: Config) -> dict[str, list[tuple[int, int]]]:
    """What is reported, by stage."""
    events: dict[str, list[tuple[int, int]]] = {}

    def report(stage: str, done: int, total: int, note: str) -> None:
        events.setdefault(stage, []).append((done, total))

    work(config, report=report)
    return events


@pytest.mark.parametrize("before", [None, 1, 2, 3], ids=["empty", "first", "two", "all"])
def test_progress_over_several_teachers_rises_to_its_end(folder: Path, before: int | None):
    if before is not None:  # teachers that the store holds already
        work(small(teacher={"count": before}))
    events = told(small(teacher={"count": 3}))
    assert {total for _, total in events["squeeze"]} == {6}
    done = [done for done, _ in events["squeeze"]]
    assert done == sorted(set(done))
    assert done[-1] == 6
    assert events["recover"][-1][0] == events["recover"][-1][1]
    assert list(events) == ["squeeze", "recover", "done"]


def test_sizes_that_are_optimised_apart_are_those_of_runs_of_their_own(folder: Path):
    small_set, large_set = (1, 0, 1), (2, 1, 1)
    both = work(DM, counts=small_set + large_set)
    assert both.counts == small_set + large_set
    alone = [work(DM, counts=counts) for counts in (small_set, large_set)]
    assert all("recover" in share.from_store for share in alone)  # one artefact for each size
    assert torch.equal(both.images, torch.cat([share.images for share in alone]))


def test_the_size_is_in_the_key_where_images_depend_on_it(folder: Path):
    tree = tiny_tree(model=NARROW)
    options = {"iterations": 1, "width": 4, "depth": 2, "network_images": 0, "batch_real": 4}
    configs = [
        config_file.from_dict({**tree, "distill": {"name": "dream", "ipc": [ipc], **options}})
        for ipc in (4, 5, 5)
    ]
    shares = [work(config, counts=(1, 1, 1)) for config in configs]
    assert ["recover" in share.from_store for share in shares] == [False, False, True]
    assert list(shares[0].curves) == ["matching/ipc-4"]
    assert list(shares[2].curves) == ["matching/ipc-5"]
