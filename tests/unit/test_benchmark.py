"""The benchmark measures every part that there is, and counts what an image costs."""

from dataclasses import replace

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch.utils.flop_counter import FlopCounterMode

from fedistill import benchmark, registry, tables
from fedistill.distillers.base import Task
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


def test_the_cost_is_that_of_the_whole_method():
    short, long = (benchmark._cost(SRe2L(iterations=n), task()) for n in (100, 400))
    assert (long["forward"], long["forward_backward"]) == (0, 400)
    assert long["gflop"] == pytest.approx(4 * short["gflop"])


def test_operations_are_those_that_torch_counts():
    with FlopCounterMode(display=False) as expected:
        SRe2L(iterations=3).distill(task())
    with benchmark._Operations() as found:
        SRe2L(iterations=3).distill(task())
    assert found.by_dtype == {torch.float32: expected.get_total_flops()}


def test_lic_costs_800_passes_of_each_kind_beside_the_choice():
    cost = benchmark._cost(LIC(), task())
    chosen_from = 60 / 6  # all of the shard, once
    assert cost["forward_backward"] == 800
    assert cost["forward"] == pytest.approx(800 + chosen_from, abs=0.5)  # a look at the layers


def test_operations_are_counted_by_precision():
    with benchmark._Operations() as found:
        a = torch.ones(2, 3)
        a @ a.T
        a.bfloat16() @ torch.ones(3, 5).bfloat16()
    assert found.by_dtype == {torch.float32: 2 * 2 * 3 * 2, torch.bfloat16: 2 * 2 * 3 * 5}


def test_counting_leaves_no_hook_behind():
    given = task()
    benchmark._cost(LIC(), given)
    assert not any(layer._forward_hooks for layer in given.teachers[0].modules())
