"""A client's work: what the store saves it, and several teachers of one client."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_config, tiny_images, tiny_spec, tiny_tree
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedistill import config_file, wire, worker
from fedistill.client import make_share
from fedistill.config import Config
from fedistill.distillers import dm
from fedistill.distillers.sre2l import SRe2L
from fedistill.images import DataSpec, ImageSet
from fedistill.shares import Share
from fedistill.store import VARIABLE
from fedistill.whitening import Whitening
from fedistill.worker import restore_teachers

SPEC, SHARD = tiny_spec(), tiny_images()
COUNTS = (2, 0, 1)
NARROW = {"name": "convnet", "depth": 2, "width": 4}
SHALLOW = {"name": "convnet", "depth": 1, "width": 4}


def small(**sections: Any) -> Config:
    return tiny_config(**{"model": NARROW, **sections})


CONFIG = small()
TWO = small(teacher={"count": 2})


def work(
    config: Config = CONFIG,
    *,
    spec: DataSpec = SPEC,
    shard: ImageSet = SHARD,
    counts: Sequence[int] = COUNTS,
    partition_id: int = 0,
    **options: Any,
) -> Share:
    return make_share(config, spec, shard, counts, partition_id=partition_id, **options)


def assert_same(first: Share, second: Share) -> None:
    assert torch.equal(first.images, second.images)
    assert len(first.teachers) == len(second.teachers)
    for one, other in zip(first.teachers, second.teachers, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype
            assert torch.equal(tensor, other[name]), name
    for name in ("partition_id", "counts", "teacher_curve", "recover_curve"):
        assert getattr(first, name) == getattr(second, name), name


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it should have been read from the store")

    monkeypatch.setattr(worker, "squeeze", fail)
    monkeypatch.setattr(SRe2L, "distill", fail)


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
    "made": {"made": (1, 0, 0)},
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


def test_each_teacher_has_its_own_start_and_the_first_is_the_only_one_of_count_1():
    one, two = work(), work(TWO)
    assert [len(share.teachers) for share in (one, two)] == [1, 2]
    first, second = two.teachers
    for name, tensor in one.teachers[0].items():
        assert torch.equal(tensor, first[name])
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert two.teacher_curve == one.teacher_curve


def test_backbones_are_trained_in_turn_by_every_client():
    config = small(teacher={"count": 2, "backbones": [NARROW, SHALLOW]}, model=[NARROW, NARROW])
    for partition_id in (0, 1):
        depths = [model.depth for model in config.teachers_of(partition_id)]
        assert depths == [2, 1, 2, 1]
        share = work(config, partition_id=partition_id)
        sizes = [sum(t.numel() for t in state.values()) for state in share.teachers]
        assert sizes[0] == sizes[2] != sizes[1] == sizes[3]
        restore_teachers(config, SPEC, partition_id, share.teachers)


def test_without_backbones_each_client_trains_its_own_model():
    config = small(teacher={"count": 2}, model=[NARROW, SHALLOW])
    depths = [[model.depth for model in config.teachers_of(number)] for number in range(3)]
    assert depths == [[2, 2], [1, 1], [2, 2]]


def test_the_answer_of_several_teachers_is_the_mean_of_their_logits():
    states = work(TWO).teachers
    images = SPEC.normalise(SHARD.images)
    together = restore_teachers(TWO, SPEC, 0, states)
    alone = [restore_teachers(CONFIG, SPEC, 0, [state]) for state in states]
    expected = (alone[0](images) + alone[1](images)) / 2
    torch.testing.assert_close(together(images), expected)
    assert not any(module.training for module in together.modules())
    assert not any(parameter.requires_grad for parameter in together.parameters())


MIXED = small(teacher={"backbones": [NARROW, SHALLOW]})


@pytest.mark.parametrize(
    "change",
    [lambda s: s[:1], lambda s: (*s, s[0]), lambda s: (), lambda s: s[::-1]],
    ids=["one short", "one too many", "none", "in another order"],
)
def test_other_teachers_than_the_config_names_are_refused(change: Callable[[Any], Any]):
    states = change(work(MIXED).teachers)
    with pytest.raises(RuntimeError):
        restore_teachers(MIXED, SPEC, 0, states)
    if states:
        with pytest.raises(RuntimeError):
            work(MIXED, teacher_states=states)


def test_a_share_with_several_teachers_arrives_whole():
    share = work(MIXED)
    proto = recorddict_to_proto(wire.encode_share(share))
    content = recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))
    request = wire.DistillRequest(config=MIXED, spec=SPEC, partition_id=0, counts=list(COUNTS))
    assert_same(wire.decode_share(content, request), share)


def test_what_came_from_the_store_is_told_to_the_server():
    request = wire.DistillRequest(config=CONFIG, spec=SPEC, partition_id=0, counts=list(COUNTS))
    share = work()
    for stages in ((), ("squeeze",), ("recover",), ("squeeze", "recover")):
        content = wire.encode_share(replace(share, from_store=stages))
        assert wire.decode_share(content, request).from_store == stages


def test_a_second_request_takes_the_teachers_that_were_sent_back(monkeypatch: pytest.MonkeyPatch):
    first = work(TWO)
    monkeypatch.setattr(worker, "squeeze", None)
    second = work(TWO, attempt=1, made=COUNTS, teacher_states=first.teachers)
    assert second.seconds["squeeze"] == 0
    assert second.teacher_curve == ()
    assert_same(replace(second, images=first.images, teacher_curve=first.teacher_curve,
                        recover_curve=first.recover_curve), first)  # fmt: skip
    for old, new in zip(first.images, second.images, strict=True):
        assert not torch.equal(old, new)


def test_the_distiller_learns_what_was_made_before(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, Sequence[int]]] = []
    real = SRe2L.distill

    def distill(self: SRe2L, task: Any) -> Any:
        seen.append((task.attempt, task.made))
        assert len(task.teachers) == len(task.models) == 2
        return real(self, task)

    monkeypatch.setattr(SRe2L, "distill", distill)
    share = work(TWO)
    work(TWO, attempt=1, made=share.counts, teacher_states=share.teachers)
    assert seen == [(0, ()), (1, COUNTS)]


# Its images are optimised for each other, so every size has images of its own.
DM = config_file.from_dict(
    {
        **tiny_tree(model=NARROW),
        "distill": {"name": "dm", "iterations": 2, "width": 4, "ipc": [1, 2]},
    }
)


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


def test_a_later_request_tells_each_size_what_it_has(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Sequence[int], Sequence[int]]] = []
    real = dm.DM.distill

    def distill(self: dm.DM, task: Any) -> Any:
        seen.append((task.counts, task.made))
        return real(self, task)

    monkeypatch.setattr(dm.DM, "distill", distill)
    work(DM, counts=(1, 0, 0, 2, 0, 0), attempt=1, made=(0, 1, 1, 0, 2, 2))
    assert seen == [((1, 0, 0), (0, 1, 1)), ((2, 0, 0), (0, 2, 2))]


def test_progress_over_several_sizes_rises_to_its_end():
    events: list[tuple[int, int]] = []

    def report(stage: str, done: int, total: int, note: str) -> None:
        if stage == "recover":
            events.append((done, total))

    work(DM, counts=(1, 0, 0, 2, 0, 0), report=report)
    assert events == [(1, 4), (2, 4), (3, 4), (4, 4)]
