"""Every row of a run says what it would have cost, and rivals leave the run itself alone."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config

from fedistill import data, pipeline, results, runner, tables, wire
from fedistill.config import Config
from fedistill.models import build

ROWS = ["random", "hard_label", "ensemble", "weight_average", "fedavg", "full_data"]
NAMES = [*ROWS[:4], "fedavg_1", "fedavg_2", "full_data"]


@dataclass(frozen=True)
class Run:
    config: Config
    folder: Path
    result: dict[str, Any]

    def entry(self, ipc: int) -> dict[str, Any]:
        found: dict[str, Any] = self.result["sets"][str(ipc)]
        return found

    def bytes(self, name: str, ipc: int = 1) -> dict[str, int]:
        found: dict[str, int] = self.entry(ipc)["baselines"][name]["bytes"]
        return found


def run(folder: Path, **sections: Any) -> Run:
    config = tiny_config(baselines=ROWS, fedavg={"rounds": 2, "epochs": 1}, **sections)
    return Run(config, folder, runner.run(config, folder, "local"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("bytes") / "run", distill={"ipc": [1, 3]})


def test_every_set_has_the_same_rivals_beside_it(base: Run):
    for ipc in (1, 3):
        assert list(base.entry(ipc)["baselines"]) == NAMES
    for name in ("ensemble", "weight_average", "fedavg_1", "fedavg_2", "full_data"):
        assert base.entry(1)["baselines"][name] == base.entry(3)["baselines"][name]
    assert base.result["seconds"]["fedavg"] > 0


def test_what_the_run_itself_sent_holds_no_rival(base: Run):
    found = base.result["bytes"]
    for way in ("up", "down"):
        stages = [it["stages"] for it in found["per_client"].values()]
        own = sum(stage[way] for it in stages for stage in it.values())
        assert found[way] == own
        assert all(it.keys() == {wire.DESCRIBE, wire.DISTILL} for it in stages)
    alone = runner.run(replace(base.config, baselines=()), base.folder.parent / "alone", "local")
    assert alone["bytes"]["up"] == pytest.approx(found["up"], abs=50)  # digits of the seconds
    assert alone["sets"]["3"]["sha256"] == base.entry(3)["sha256"]
    assert alone["sets"]["3"]["students"] == base.entry(3)["students"]
    assert "fedavg" not in alone["seconds"]


def test_the_largest_set_costs_what_the_run_sent(base: Run):
    sent = base.result["bytes"]
    assert base.entry(3)["traffic"] == {"up": sent["up"], "down": sent["down"]}


def test_rows_differ_by_what_they_send(base: Run):
    spec = data.load(base.config.data).spec
    network = build(base.config.teacher_model(0), spec, 0)
    weights = 2 * sum(tensor.nbytes for tensor in network.state_dict().values())  # two clients
    image = spec.channels * spec.size**2
    # Twenty images more, in the same messages: a length may take a byte or two more.
    more = base.entry(3)["traffic"]["up"] - base.entry(1)["traffic"]["up"]
    assert more == pytest.approx(20 * image, abs=20)
    for ipc in (1, 3):
        own = base.entry(ipc)["traffic"]
        hard, random, none = (base.bytes(name, ipc) for name in (*NAMES[1::-1], "ensemble"))
        assert weights < own["up"] - hard["up"] < 1.5 * weights + 5000
        assert 0 < own["up"] - random["up"] < 2000  # no curve of an optimisation
        assert random["up"] - none["up"] == pytest.approx(10 * ipc * image, abs=20)
        assert none == base.bytes("weight_average", ipc)
        assert own["down"] == hard["down"] == random["down"] == none["down"]


def test_all_real_data_cost_every_pixel_and_a_byte_for_each_label(base: Run):
    train = data.load(base.config.data).train
    pixels = train.images.numel() + len(train)
    assert pixels < base.bytes("full_data")["up"] < pixels + 2 * 1000  # headers of two messages
    assert base.bytes("full_data")["down"] < base.bytes("random")["down"]


def test_fedavg_pays_for_every_round(base: Run):
    one, two = base.bytes("fedavg_1"), base.bytes("fedavg_2")
    assert two["up"] == 2 * one["up"]
    assert two["down"] == pytest.approx(2 * one["down"], abs=100)
    assert one["down"] > one["up"]  # the config goes down with the weights


def test_with_a_set_of_one_size_nothing_is_left_to_argue(tmp_path: Path):
    found = run(tmp_path / "run", partition={"clients": 1})
    assert list(found.entry(1)["baselines"]) == NAMES
    sent = found.result["bytes"]
    assert found.entry(1)["traffic"] == {"up": sent["up"], "down": sent["down"]}
    rows = found.entry(1)["baselines"]
    assert rows["weight_average"]["top1"] == rows["ensemble"]["top1"]  # of one teacher
    assert rows["weight_average"]["top1"] == found.result["teachers"]["top1"]


def test_bytes_are_tracked_and_printed(base: Run, capsys: pytest.CaptureFixture[str]):
    journal = (base.folder / "tracking.jsonl").read_text()
    for name in NAMES:
        assert f"baseline/{name}/mbytes_up" in journal
        assert f"baseline/{name}/top1_mean" in journal
    assert "fedavg/top1" in journal
    assert (base.folder / "figures" / "scores_ipc-1.png").exists()
    tables.print_result(results.read_json(base.folder / "result.json"), base.folder)
    printed = capsys.readouterr().out
    for text in ("MB up", "FedAvg, 1 round", "FedAvg, 2 rounds"):
        assert text in printed
    up = base.bytes("fedavg_2")["up"]
    assert f"{up / 1e6:.3g}" in printed


def test_the_result_of_an_older_run_is_printed_without_bytes(
    base: Run, capsys: pytest.CaptureFixture[str]
):
    old = json.loads(json.dumps(base.result))
    for entry in old["sets"].values():
        del entry["traffic"]
        for row in entry["baselines"].values():
            del row["bytes"]
    tables.print_result(old, base.folder)
    assert "FedAvg" in capsys.readouterr().out


def test_the_page_without_flower_leaves_fedavg_out(base: Run, caplog: pytest.LogCaptureFixture):
    few = replace(base.config, baselines=("weight_average", "fedavg"))
    with caplog.at_level(logging.WARNING):
        scores = pipeline.run(few)[1].scores.as_dict()
    assert "'fedavg' is left out" in caplog.text
    expected = dict(base.entry(1)["baselines"]["weight_average"])
    del expected["bytes"]
    assert scores["baselines"] == {"weight_average": expected}
