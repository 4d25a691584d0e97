"""The whole federation in this process: real ServerApp, real ClientApp, real messages."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import tiny_config, tiny_tree
from federation import Backwards, Run, assert_full, run, start

from fedistill import config_file, data, partition, pipeline, runner, wire
from fedistill.errors import ConfigError, OutputError, PartitionError, UserError
from fedistill.models import build
from fedistill.sets import SyntheticSet


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three clients, two sizes, every baseline."""
    return run(
        tmp_path_factory.mktemp("base") / "run",
        partition={"clients": 3},
        distill={"ipc": [2, 1]},
        student={"seeds": 2},
        baselines=["random", "hard_label", "ensemble", "full_data"],
    )


def test_result_json_has_the_keys_of_the_contract(base: Run):
    result = base.result
    assert result == json.loads((base.folder / "result.json").read_text())
    assert result.keys() >= {
        "name", "seed", "config_sha256", "hardware", "versions", "clients", "teachers", "sets",
        "bytes", "absent_clients", "seconds", "uses_real_images", "mlflow",
    }  # fmt: skip
    assert (result["name"], result["seed"], result["clients"]) == ("tiny", 0, 3)
    assert result["config_sha256"] == config_file.sha256(base.config)
    assert len(result["teachers"]["top1"]) == 3
    assert result["teachers"]["top1_mean"] == pytest.approx(
        sum(result["teachers"]["top1"]) / 3, abs=1e-3
    )
    assert list(result["sets"]) == ["2", "1"]
    assert result["absent_clients"] == []
    assert result["uses_real_images"] is False
    assert result["seconds"].keys() == {
        "squeeze", "recover", "relabel", "cotrain", "evaluate", "total",
    }  # fmt: skip
    seconds = result["seconds"]
    assert seconds["total"] >= seconds["squeeze"] + seconds["recover"] + seconds["evaluate"]
    assert result["mlflow"].keys() == {"tracking_uri", "experiment_id", "run_id"}


def test_scores_are_given_for_every_student_and_baseline(base: Run):
    for entry in base.result["sets"].values():
        assert entry["students"].keys() == {"convnet"}
        assert entry["baselines"].keys() == {"random", "hard_label", "ensemble", "full_data"}
        assert all(row["bytes"].keys() == {"up", "down"} for row in entry["baselines"].values())
        rows = [*entry["students"].values(), *entry["baselines"].values()]
        for row in rows:
            assert row.keys() - {"bytes"} == {"top1", "top1_mean", "top1_std", "n"}
            assert row["n"] == len(row["top1"])
            assert all(0 <= value <= 100 for value in row["top1"])
        assert entry["students"]["convnet"]["n"] == 2
    first, second = (entry["baselines"] for entry in base.result["sets"].values())
    assert first["full_data"] == second["full_data"]
    assert first["ensemble"] == second["ensemble"]


def test_the_sets_are_whole_and_on_budget(base: Run):
    for ipc in (1, 2):
        entry, synthetic = base.result["sets"][str(ipc)], base.set_of(ipc)
        assert_full(synthetic, ipc)
        assert entry["images"] == len(synthetic) == 10 * ipc
        assert entry["sha256"] == synthetic.sha256
        for kind in ("images", "labels"):
            path = base.folder / "sets" / f"ipc-{ipc}" / f"{kind}.safetensors"
            assert entry["bytes"][kind] == path.stat().st_size
        assert synthetic.soft_labels is not None
        assert synthetic.soft_labels.logits.shape == (2, 10 * ipc, 10)
        totals = Counter(synthetic.clients.tolist())
        assert max(totals.values()) - min(totals.values()) <= 1
        assert synthetic.card["provenance"]["images_by_client"] == {
            str(client): count for client, count in totals.items()
        }
        assert synthetic.card["recipe"] == config_file.to_dict(base.config)


def test_sizes_of_one_run_share_the_first_images_of_each_client(base: Run):
    small, large = base.set_of(1), base.set_of(2)
    shared = 0
    for client in range(3):
        for label in range(10):
            few, many = (
                s.images[(s.clients == client) & (s.hard_labels == label)] for s in (small, large)
            )
            common = min(len(few), len(many))
            assert torch.equal(few[:common], many[:common])
            shared += common
    assert shared > 0


def test_bytes_are_those_of_the_messages(base: Run):
    found = base.result["bytes"]
    clients = found["per_client"]
    assert clients.keys() == {"0", "1", "2"}
    for way in ("up", "down"):
        assert found[way] == sum(client[way] for client in clients.values())
        for client in clients.values():
            stages = client["stages"]
            assert stages.keys() == {wire.DESCRIBE, wire.DISTILL}
            assert all(stage[way] > 0 for stage in stages.values())
            assert client[way] == sum(stage[way] for stage in stages.values())
    spec = data.load(base.config.data).spec
    teacher = build(base.config.teacher_model(0), spec, 0)
    weights = 4 * sum(p.numel() for p in teacher.parameters())
    for client in clients.values():  # 20 images of 64 bytes among 3 clients, and a teacher each
        assert weights + 6 * 64 < client["stages"][wire.DISTILL]["up"] < 2 * weights + 7 * 64
    assert found["up"] > found["down"]


def test_the_output_folder_holds_what_the_contract_names(base: Run):
    names = {path.name for path in base.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "result.json",
        "tracking.jsonl",
        "partition.json",
        "sets",
        "figures",
    }
    assert config_file.load(base.folder / "config.yaml") == base.config
    assert not (base.folder / "failure.json").exists()
    assert list((base.folder / "figures").glob("*.png"))
    saved = partition.Partition.load(base.folder / "partition.json")
    assert saved.num_partitions == 3


def test_the_same_config_gives_the_same_sets(base: Run, tmp_path: Path):
    again = runner.run(replace(base.config, baselines=()), tmp_path / "again", "local")
    for ipc in ("1", "2"):
        assert again["sets"][ipc]["sha256"] == base.result["sets"][ipc]["sha256"]
        assert again["sets"][ipc]["students"] == base.result["sets"][ipc]["students"]
    assert again["teachers"] == base.result["teachers"]


def test_another_seed_gives_other_sets(base: Run):
    strategy, _ = start(replace(base.config, seed=1))
    assert strategy.sets[1].sha256 != base.result["sets"]["1"]["sha256"]


def test_the_order_of_the_replies_does_not_matter(base: Run):
    strategy, _ = start(base.config, Backwards)
    assert list(strategy.shares) == list(strategy.teachers) == [0, 1, 2]
    assert strategy.sets[2].sha256 == base.result["sets"]["2"]["sha256"]


def test_the_page_without_flower_makes_the_same_sets(base: Run):
    outcomes = pipeline.run(replace(base.config, baselines=()))
    assert {str(ipc): outcome.synthetic.sha256 for ipc, outcome in outcomes.items()} == {
        ipc: entry["sha256"] for ipc, entry in base.result["sets"].items()
    }
    students = outcomes[2].scores.as_dict()["students"]
    assert students == base.result["sets"]["2"]["students"]


@pytest.mark.parametrize("name", ["mix", "own", "single", "mean", "consensus"])
def test_with_one_client_flower_changes_nothing_however_it_relabels(name: str):
    config = tiny_config(partition={"clients": 1}, relabel={"name": name})
    strategy, _ = start(config)
    assert_full(strategy.sets[1], 1)
    alone = pipeline.run(config)[1].synthetic
    assert strategy.sets[1].sha256 == alone.sha256


def test_each_way_to_relabel_gives_other_labels_to_the_same_images():
    found = {}
    for name in ("mix", "own", "single", "mean", "consensus"):
        strategy, _ = start(tiny_config(relabel={"name": name, "views": 4}))
        found[name] = strategy.sets[1]
        assert_full(strategy.sets[1], 1)
    images = {s.images.numpy().tobytes() for s in found.values()}
    assert len(images) == 1
    assert len({s.sha256 for s in found.values()}) == len(found)


def test_the_arrays_of_the_result_are_the_sets():
    strategy, result = start(tiny_config(distill={"ipc": [1, 2]}))
    for ipc in (1, 2):
        synthetic = strategy.sets[ipc]
        labels = synthetic.soft_labels
        assert labels is not None
        for key, tensor in (
            ("images", synthetic.images),
            ("hard-labels", synthetic.hard_labels),
            ("clients", synthetic.clients),
            ("teacher-logits", labels.logits),
        ):
            array = result.arrays[f"ipc-{ipc}/{key}"].numpy()
            assert np.array_equal(array, tensor.numpy())
            assert array.dtype == tensor.numpy().dtype
    assert len(result.arrays) == 8


def test_more_clients_than_images_of_a_class():
    strategy, _ = start(tiny_config(partition={"clients": 4}, distill={"ipc": [3]}))
    assert_full(strategy.sets[3], 3)
    for label in range(10):
        makers = strategy.sets[3].clients[strategy.sets[3].hard_labels == label]
        assert len(makers.unique()) == 3


def test_a_client_without_a_slot_still_lends_its_teacher():
    strategy, _ = start(tiny_config(partition={"clients": 12}, relabel={"views": 20}))
    assert_full(strategy.sets[1], 1)
    assert len(strategy.sets[1].clients.unique()) == 10
    assert list(strategy.teachers) == list(range(12))


def test_a_run_with_clients_without_slots_is_written_down(tmp_path: Path):
    found = run(tmp_path / "run", partition={"clients": 12})
    assert len(found.result["teachers"]["top1"]) == 12
    alone = pipeline.run(found.config)[1].synthetic
    assert found.result["sets"]["1"]["sha256"] == alone.sha256


def test_clients_with_few_classes_make_those_alone():
    config = tiny_config(
        partition={"name": "pathological", "clients": 5, "classes_per_client": 3},
        distill={"ipc": [2]},
    )
    strategy, _ = start(config)
    assert_full(strategy.sets[2], 2)
    for client, label in zip(
        strategy.sets[2].clients.tolist(), strategy.sets[2].hard_labels.tolist(), strict=True
    ):
        assert strategy.descriptions[client].histogram[label] > 0


def test_teachers_may_differ_from_client_to_client():
    networks = [
        {"name": "convnet", "depth": 2, "width": 4},
        {"name": "convnet", "depth": 1, "width": 8},
    ]
    strategy, _ = start(tiny_config(model=networks, partition={"clients": 3}))
    sizes = [sum(p.numel() for p in net.parameters()) for net in strategy.teachers.values()]
    assert sizes[0] == sizes[2] != sizes[1]
    assert_full(strategy.sets[1], 1)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path):
    refused: list[tuple[type[UserError], dict[str, Any]]] = [
        (PartitionError, {"partition": {"clients": 10_000}}),
        (UserError, {"model": {"norm": "instance"}}),
        (UserError, {"model": {"depth": 7}}),
        (UserError, {"student": {"models": ["resnet19"]}}),
        (UserError, {"data": {"name": "/nowhere/at/all"}}),
    ]
    for error, sections in refused:
        with pytest.raises(error):
            run(tmp_path / "run", **sections)
        assert not (tmp_path / "run").exists(), sections
    with pytest.raises(ConfigError):
        config_file.from_dict(tiny_tree(distill={"iterationz": 3}))


def test_sets_of_a_method_that_optimises_jointly_are_those_of_runs_of_their_own():
    def of(*sizes: int) -> dict[int, SyntheticSet]:
        tree = tiny_tree(partition={"clients": 2})
        tree["distill"] = {"name": "dm", "iterations": 3, "width": 4, "ipc": list(sizes)}
        return start(config_file.from_dict(tree))[0].sets

    both = of(1, 3)
    for size in (1, 3):
        assert torch.equal(both[size].images, of(size)[size].images)
        assert_full(both[size], size)


def figures_of(found: Run) -> set[str]:
    """Return the names of the figures: one that cannot be drawn ends no run, it is only missing."""
    return {path.stem for path in (found.folder / "figures").glob("*.png")}


def test_sizes_that_are_trained_together_on_the_server(tmp_path: Path):
    sections: dict[str, Any] = {"distill": {"ipc": [1, 2]}, "partition": {"clients": 2}}
    section = {"iterations": 2, "width": 4, "network_images": 20, "warmup": 0.0, "lr": 1.0}
    plain = start(tiny_config(**sections))[0].sets
    found = run(tmp_path / "together", **sections, cotrain=section)
    assert found.result["seconds"]["cotrain"] > 0
    assert torch.equal(found.set_of(2).images, plain[2].images)
    assert not torch.equal(found.set_of(1).images, plain[1].images)
    assert {"cotrain_matching", "cotrain_information", "set_ipc-1", "set_ipc-2", "features_ipc-1",
            "features_ipc-2"} <= figures_of(found)  # fmt: skip
    for size, outcome in pipeline.run(found.config).items():
        assert outcome.synthetic.sha256 == found.set_of(size).sha256


def test_clients_make_sets_of_several_sizes_together(tmp_path: Path):
    tree = tiny_tree(partition={"clients": 2})
    tree["distill"] = {"name": "mibdc", "ipc": [1, 4], "iterations": 2, "width": 4,
                       "network_images": 20, "lr": 10.0, "tiles": 1}  # fmt: skip
    config = config_file.from_dict(tree)
    found = Run(config, tmp_path / "run", runner.run(config, tmp_path / "run", "local"))
    assert {"recover_matching", "recover_information", "set_ipc-1", "set_ipc-4"} <= (
        figures_of(found)
    )
    for size, outcome in pipeline.run(config).items():
        assert outcome.synthetic.sha256 == found.set_of(size).sha256
        assert found.result["sets"][str(size)]["images"] == 10 * size
    # As many images of a class in both would start from the same real ones, and hardly part.
    small, large = (found.set_of(size).images for size in (1, 4))
    assert not any(torch.equal(image, other) for image in small for other in large)


def test_a_taken_folder_is_left_alone(base: Run):
    before = (base.folder / "result.json").read_bytes()
    with pytest.raises(OutputError, match="already holds another run"):
        run(base.folder)
    assert (base.folder / "result.json").read_bytes() == before


def test_a_distilled_set_teaches_better_than_chance(tmp_path: Path):
    found = run(
        tmp_path / "run",
        data={"fraction": 1.0},
        model={"width": 16},
        teacher={"epochs": 8},
        distill={"ipc": [4], "iterations": 100, "class_bn_weight": 1.0},
        relabel={"views": 60},
        student={"epochs": 60, "lr": 5e-3, "batch_size": 10},
    )
    assert found.result["teachers"]["top1_mean"] > 60
    assert found.result["sets"]["4"]["students"]["convnet"]["top1_mean"] > 40
