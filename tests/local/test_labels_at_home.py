"""Teachers that stay at home: the same set as with teachers on the server, in one machine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_config, tiny_tree
from federation import Silent, assert_full, failing, start
from flwr.app import Message
from torch import Tensor

from fedistill import client_app, config_file, results, runner, tables, wire
from fedistill.config import Config
from fedistill.errors import ClientsFailed, ConfigError
from fedistill.store import VARIABLE
from fedistill.wire_labels import LABEL
from strategies.base import FedDistill


def at(where: str, **sections: Any) -> Config:
    sections["relabel"] = {"views": 6, **sections.get("relabel", {}), "at": where}
    return tiny_config(**{"partition": {"clients": 3}, **sections})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where clients keep their teachers, where no command sets it."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "store"))
    return tmp_path / "store"


def spoiled_labels(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], *clients: int
) -> None:
    """Let the labels of some clients pass through `change`."""
    real = client_app.label

    def label(*args: Any, **options: Any) -> Tensor:
        logits = real(*args, **options)
        return change(logits) if options["partition_id"] in clients else logits

    monkeypatch.setattr(client_app, "label", label)


def broken(logits: Tensor) -> Tensor:
    raise MemoryError("no room for the views")


def logits_of(strategy: FedDistill, ipc: int = 1) -> Tensor:
    labels = strategy.sets[ipc].soft_labels
    assert labels is not None
    return labels.logits


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", ["mix", "own", "single", "mean", "consensus"])
def test_the_set_is_the_same_wherever_the_teachers_are(name: str):
    found = {}
    for where in ("server", "clients"):
        how = {"name": name, "prior_correction": True}
        strategy, _ = start(at(where, relabel=how, distill={"ipc": [2, 1]}))
        assert_full(strategy.sets[2], 2)
        assert list(strategy.teachers) == ([0, 1, 2] if where == "server" else [])
        assert [bool(share.teachers) for share in strategy.shares.values()] == [
            where == "server"
        ] * 3
        found[where] = [strategy.sets[ipc].sha256 for ipc in (2, 1)]
    assert found["server"] == found["clients"]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", ["mix", "mean", "consensus"])
@pytest.mark.parametrize("clients", ["dirichlet", "pathological"])
def test_the_set_is_the_same_where_clients_hold_different_classes(clients: str, name: str):
    split = {"name": clients, "clients": 3}
    if clients == "pathological":
        split["classes_per_client"] = 4
    hashes = set()
    for where in ("server", "clients"):
        config = at(where, partition=split, relabel={"name": name, "prior_correction": True})
        assert config.relabel.teacher_choice == "coverage"
        hashes.add(start(config)[0].sets[1].sha256)
    assert len(hashes) == 1


@pytest.mark.usefixtures("store")
def test_whitened_images_are_labelled_at_home_as_here():
    found = [start(at(where, data={"zca": True}))[0] for where in ("server", "clients")]
    assert found[1].at_home is not None
    assert found[1].at_home.failures == {}
    assert found[0].sets[1].sha256 == found[1].sets[1].sha256


@pytest.mark.usefixtures("store")
def test_several_teachers_of_a_client_answer_as_one_at_home_too():
    shallow = {"name": "convnet", "depth": 1, "width": 4}
    teacher = {"backbones": [{"name": "convnet", "depth": 2, "width": 4}, shallow], "count": 2}
    hashes = {
        start(at(where, teacher=teacher))[0].sets[1].sha256 for where in ("server", "clients")
    }
    assert len(hashes) == 1


def test_a_run_with_labels_from_home_is_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Without a store of the user's, with every row that needs no teacher on the server."""
    monkeypatch.delenv(VARIABLE, raising=False)
    runs = {}
    for where in ("server", "clients"):
        config = at(
            where, baselines=["random", "hard_label", "full_data"], student={"ranking": True}
        )
        runs[where] = runner.run(config, tmp_path / where, "local")
    here, home = runs["server"], runs["clients"]
    for key in ("sha256", "students", "ranking"):
        assert home["sets"]["1"][key] == here["sets"]["1"][key]
    for name, row in home["sets"]["1"]["baselines"].items():
        beside = here["sets"]["1"]["baselines"][name]
        assert row["top1"] == beside["top1"]
        asked = row["bytes"]["down"] > beside["bytes"]["down"] + 10 * 64 * 3
        assert asked == (name == "random")  # these images went to the clients to be labelled
    assert home["teachers"] == {"top1": [None] * 3, "top1_mean": None}
    assert home["absent_labellers"] == home["absent_clients"] == []
    assert home["from_store"] == {"squeeze": [], "recover": []}
    tables.print_result(home, tmp_path / "clients")
    assert "teachers" not in capsys.readouterr().out
    assert (tmp_path / "clients" / "figures" / "scores_ipc-1.png").is_file()

    for client in ("0", "1", "2"):
        mine, other = (run["bytes"]["per_client"][client] for run in (home, here))
        assert other["stages"].keys() == {wire.DESCRIBE, wire.DISTILL}
        assert mine["stages"].keys() == {wire.DESCRIBE, wire.DISTILL, LABEL}
        label = mine["stages"][LABEL]
        assert label["down"] > 10 * 64  # the set: 10 images of 64 pixels
        assert 60 / 3 * 10 < label["up"] < 60 * 10 * 2 + 1000
        assert mine["stages"][wire.DISTILL]["up"] < other["stages"][wire.DISTILL]["up"]
        assert mine["up"] == sum(stage["up"] for stage in mine["stages"].values())
    assert home["bytes"]["evaluation"]["down"] > 0
    assert here["bytes"]["evaluation"] == {"up": 0, "down": 0}
    assert results.read_json(tmp_path / "clients" / "result.json") == home


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (broken, "no room for the views"),
        (lambda logits: logits[1:], "expected"),
        (lambda logits: logits.float(), "float32"),
        (lambda logits: logits.fill_(float("nan")), "not finite"),
        (lambda logits: logits.fill_(float("inf")), "not finite"),
    ],
    ids=["raises", "one short", "floats", "nan", "overflow"],
)
def test_a_client_that_does_not_label_is_left_out_and_the_others_label_for_it(
    change: Callable[[Tensor], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
):
    config = at("clients", relabel={"name": "mix"}, distill={"ipc": [1, 2]})
    good, _ = start(config)
    spoiled_labels(monkeypatch, change, 1)
    strategy, _ = start(config)
    assert strategy.at_home is not None
    assert reason in strategy.at_home.failures[1]
    assert strategy.at_home.left == [0, 2]
    assert strategy.failures == {}
    for ipc in (1, 2):
        assert torch.equal(strategy.sets[ipc].images, good.sets[ipc].images)
        assert logits_of(strategy, ipc).isfinite().all()
    same = (logits_of(strategy) == logits_of(good)).all(2).float().mean()
    assert 0.4 < same < 0.9  # the two thirds that the others were asked for anyway
    assert start(config)[0].sets[1].sha256 == strategy.sets[1].sha256


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", ["own", "single", "mean", "consensus"])
def test_whichever_way_it_is_labelled_the_others_step_in(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    spoiled_labels(monkeypatch, broken, 0)
    strategy, _ = start(at("clients", relabel={"name": name}))
    monkeypatch.undo()
    assert strategy.at_home is not None
    assert list(strategy.at_home.failures) == [0]
    assert_full(strategy.sets[1], 1)
    assert logits_of(strategy).isfinite().all()
    assert 0 in strategy.sets[1].clients


@pytest.mark.usefixtures("store")
def test_a_silent_client_labels_no_more():
    class NoLabels(Silent):
        def is_lost(self, message: Message) -> bool:
            metadata = message.metadata
            return metadata.message_type == LABEL and metadata.dst_node_id == 102

    strategy, _ = start(at("clients"), NoLabels)
    assert strategy.at_home is not None
    assert "no answer within" in strategy.at_home.failures[2]


@pytest.mark.usefixtures("store")
def test_with_nobody_left_to_label_the_run_ends_with_the_reasons(monkeypatch: pytest.MonkeyPatch):
    spoiled_labels(monkeypatch, broken, 0, 1, 2)
    with pytest.raises(
        ClientsFailed, match=r"no client is left that labels.*client 2: MemoryError"
    ):
        start(at("clients"))


def test_a_client_without_a_store_says_so_before_it_trains(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(client_app, "make_share", None)
    with pytest.raises(ClientsFailed, match=f"{VARIABLE} is not set"):
        start(at("clients"))


def test_a_client_whose_store_cannot_be_written_says_so_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "store"))
    monkeypatch.setattr(client_app, "make_share", None)
    with pytest.raises(ClientsFailed, match="the store cannot be written") as told:
        start(at("clients"))
    assert str(tmp_path) not in str(told.value)


def test_a_client_that_has_lost_its_teacher_trains_no_other(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    real = client_app.label

    def lost(*args: Any, **options: Any) -> Tensor:
        for path in store.glob("teacher-*"):
            path.unlink()
        return real(*args, **options)

    monkeypatch.setattr(client_app, "label", lost)
    with pytest.raises(ClientsFailed, match="finds no teacher of this run in its store"):
        start(at("clients"))
    assert not list(store.glob("teacher-*"))


@pytest.mark.usefixtures("store")
def test_a_repaired_run_finds_its_teachers_at_home(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, 1)
    found = {where: start(at(where, distill={"ipc": [3]}))[0] for where in ("clients", "server")}
    assert found["server"].sets[3].sha256 == found["clients"].sets[3].sha256
    here, home = (found[where].shares[0] for where in ("server", "clients"))
    assert home.teachers == ()
    assert len(here.images) == len(home.images)
    assert found["clients"].failures.keys() == {1}
    assert home.from_store == ()  # it has found its teacher again, and did not make it twice


@pytest.mark.usefixtures("store")
def test_a_teacher_that_comes_although_it_was_to_stay_is_refused(monkeypatch: pytest.MonkeyPatch):
    real = wire.encode_share
    strategy, _ = start(at("server"))
    teachers = strategy.shares[1].teachers

    def encode(share: Any) -> Any:
        return real(replace(share, teachers=teachers) if share.partition_id == 1 else share)

    monkeypatch.setattr(wire, "encode_share", encode)
    strategy, _ = start(at("clients"))
    assert "was to stay at home" in strategy.failures[1]


@pytest.mark.parametrize("rest", [{"baselines": ["ensemble"]}, {"cotrain": {"name": "mib"}}])
def test_what_needs_teachers_here_is_refused_before_anything_starts(rest: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"relabel\.at"):
        config_file.from_dict(tiny_tree(relabel={"at": "clients"}, **rest))
