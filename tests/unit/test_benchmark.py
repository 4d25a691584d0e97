"""The benchmark measures every part that there is, and counts what an image costs."""

import time
from dataclasses import dataclass, replace

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch.utils.flop_counter import FlopCounterMode

from fedistill import benchmark, registry, tables
from fedistill.distillers.base import Distilled, Distiller, Task
from fedistill.distillers.lic import LIC
from fedistill.distillers.sre2l import SRe2L


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stages on 8 x 8 pixels, each run twice."""
    monkeypatch.setattr(benchmark, "_SPEC", replace(benchmark._SPEC, size=8))
    monkeypatch.setattr(benchmark, "_MODEL", CONVNET)
    monkeypatch.setattr(benchmark, "_REPEATS", 1)
    monkeypatch.setattr(benchmark, "_RUN_S", 0.0)
    monkeypatch.setattr(benchmark, "_peak", lambda device, dtype: 1000.0)


def test_every_distiller_is_measured(small: None, capsys: pytest.CaptureFixture[str]):
    measured = benchmark.measure()
    recover = {f"recover/{name}" for name in registry.names("distillers")}
    assert measured["stages"].keys() == recover | {"squeeze", "relabel", "student"}
    for name, stage in measured["stages"].items():
        assert stage["per_second"] > 0
        assert (stage["gflops"] > 0) == (name != "recover/random"), name
        assert stage["share_of_peak"] == pytest.approx(stage["gflops"] / 1000)
        assert (stage["cost"] is not None) == (name in recover)
    tables.print_bench(measured)
    printed = capsys.readouterr().out
    assert all(name in printed for name in recover)


def task() -> Task:
    spec = tiny_spec()
    return Task(
        counts=[2, 2, 2],
        shard=tiny_images(20),
        teachers=[tiny_teacher()],
        models=[CONVNET],
        spec=spec,
        seed=0,
        partition_id=0,
        device=CPU,
    )


def cost(part: Distiller) -> dict[str, float]:
    stage = benchmark._distiller_stage("method", part, task())
    assert stage.cost is not None
    return stage.cost


@dataclass(frozen=True)
class SlowToBegin(SRe2L):
    """A method whose steps take nothing, beside what it does once."""

    def distill(self, task: Task) -> Distilled:
        weights = torch.ones(8, 8)
        _ = weights @ weights
        time.sleep(0.2)
        for step in range(self.iterations):
            _ = weights @ weights
            task.report(step + 1, self.iterations, None)
        return Distilled(torch.empty(0), [])


def test_what_a_method_does_once_is_no_part_of_its_steps():
    stage = benchmark._distiller_stage("slow", SlowToBegin(), task())
    assert stage.count == 6 * 20
    assert benchmark._operations(stage.work) == {torch.float32: 20 * 2 * 8**3}
    assert benchmark._median_seconds(stage.work, CPU) < 0.1


def test_the_cost_is_that_of_the_whole_method():
    short, long = (cost(SRe2L(iterations=n)) for n in (100, 400))
    assert (long["forward"], long["forward_backward"]) == (0, 400)
    assert long["gflop"] == pytest.approx(4 * short["gflop"])


def test_operations_are_those_that_torch_counts():
    with FlopCounterMode(display=False) as expected:
        SRe2L(iterations=3).distill(task())
    with benchmark._Operations() as found:
        SRe2L(iterations=3).distill(task())
    assert found.by_dtype == {torch.float32: expected.get_total_flops()}


def test_lic_costs_800_passes_of_each_kind_beside_the_choice():
    found = cost(LIC())
    chosen_from = 60 / 6  # all of the shard, once
    assert found["forward_backward"] == 800
    assert found["forward"] == pytest.approx(800 + chosen_from, abs=0.5)  # a look at the layers


def test_operations_are_counted_by_precision():
    with benchmark._Operations() as found:
        a = torch.ones(2, 3)
        a @ a.T
        a.bfloat16() @ torch.ones(3, 5).bfloat16()
    assert found.by_dtype == {torch.float32: 2 * 2 * 3 * 2, torch.bfloat16: 2 * 2 * 3 * 5}


def test_counting_leaves_no_hook_behind():
    given = task()
    benchmark._distiller_stage("lic", LIC(), given)
    assert not any(layer._forward_hooks for layer in given.teachers[0].modules())
