"""Learning-rate curves against their formulas: the whole curve, not only its ends."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import nn

from fedistill.config import Schedule
from fedistill.training import (
    learning_rate_factor,
    load_weights,
    resolve_precision,
    warmup_then_decay,
)

EPOCHS = 60


def test_an_average_is_loaded_with_whole_numbers_where_they_belong():
    layer = nn.BatchNorm2d(2)
    state = {name: tensor.double() for name, tensor in layer.state_dict().items()}
    state["running_mean"] += 0.25
    state["num_batches_tracked"] += 2.9999999
    load_weights(layer, state)
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.dtype == torch.int64
    assert layer.num_batches_tracked == 3
    assert layer.running_mean is not None
    assert layer.running_mean.tolist() == [0.25, 0.25]
    assert layer.running_mean.dtype == torch.float32
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(layer, {})


def curve(schedule: str, zeta: float = 2.0) -> list[float]:
    return [learning_rate_factor(schedule, epoch / EPOCHS, zeta) for epoch in range(EPOCHS + 1)]


def half_a_cosine_of(length: float, epoch: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / (length * EPOCHS)))


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [
        ("cosine", 1, 0.5, 0),
        ("half_cosine", 1, (1 + 0.5**0.5) / 2, 0.5),
        ("smoothing", 1, (1 + 0.5**0.5) / 2, 0.5),
        ("ssrs", 1, (1 + 0.5**0.5) / 2, 0),
        ("multistep", 1, 1, 0.125),
        ("two_steps", 1, 1, 0.04),
        ("constant", 1, 1, 1),
    ],
)
def test_every_schedule_at_start_middle_and_end(
    schedule: str, start: float, middle: float, end: float
):
    found = [learning_rate_factor(schedule, done) for done in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([start, middle, end], abs=1e-12)


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_every_schedule_of_the_config_falls_from_1_and_never_rises(schedule: str):
    for zeta in (1.0, 1.5, 3.0):
        found = curve(schedule, zeta)
        assert found[0] == 1
        assert all(0 <= later <= earlier for earlier, later in pairwise(found))


@pytest.mark.parametrize("zeta", [1.0, 1.5, 2.0, 2.5, 3.0])
def test_smoothing_is_a_cosine_zeta_times_as_long_as_the_training(zeta: float):
    """EDC: lr (1 + cos(e pi / (zeta E))) / 2."""
    expected = [half_a_cosine_of(zeta, epoch) for epoch in range(EPOCHS + 1)]
    assert curve("smoothing", zeta) == pytest.approx(expected, abs=1e-12)


def test_smoothing_is_between_two_known_schedules():
    assert curve("smoothing", 1.0) == pytest.approx(curve("cosine"), abs=1e-12)
    assert curve("smoothing", 2.0) == pytest.approx(curve("half_cosine"), abs=1e-12)


@pytest.mark.parametrize("zeta", [1.0, 1.5, 2.0])
def test_ssrs_leaves_the_cosine_at_five_sixths_for_a_line_to_0(zeta: float):
    """EDC: (1 + cos(5 pi / (6 zeta))) / 2 * (E - e) / E; a drop to a sixth where it sets in."""
    found = curve("ssrs", zeta)
    turn = EPOCHS * 5 // 6
    assert found[: turn + 1] == pytest.approx(curve("smoothing", zeta)[: turn + 1], abs=1e-12)
    height = half_a_cosine_of(zeta, turn)
    late = range(turn + 1, EPOCHS + 1)
    expected = [height * (EPOCHS - epoch) / EPOCHS for epoch in late]
    assert found[turn + 1 :] == pytest.approx(expected, abs=1e-12)
    assert found[turn + 1] < found[turn] / 5


@pytest.mark.parametrize("schedule", ["cosine", "half_cosine", "multistep", "two_steps"])
def test_zeta_is_of_the_schedules_of_edc_alone(schedule: str):
    assert curve(schedule, 1.5) == curve(schedule, 3.0)


def test_multistep_halves_at_its_steps():
    factors = [learning_rate_factor("multistep", done) for done in (0.79, 0.8, 0.9, 0.95)]
    assert factors == [1, 0.5, 0.25, 0.125]


def test_two_steps_takes_a_fifth_at_its_steps():
    factors = [learning_rate_factor("two_steps", done) for done in (0.66, 0.67, 0.83, 0.84)]
    assert factors == pytest.approx([1, 0.2, 0.2, 0.04])


def test_warm_up_rises_to_1_and_then_falls_to_0():
    assert warmup_then_decay(0.2, 0.0) == 0
    assert warmup_then_decay(0.2, 0.1) == pytest.approx(0.5)
    assert warmup_then_decay(0.2, 0.2) == pytest.approx(1)
    assert warmup_then_decay(0.2, 0.6) == pytest.approx(0.5)
    assert warmup_then_decay(0.2, 1.0) == pytest.approx(0)
    assert warmup_then_decay(0.0, 0.0) == 1


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "amx_tile": False}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({"architecture": "arm"}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], dtype: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) is dtype


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_named_precision_is_used_whatever_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert resolve_precision(name, torch.device("cpu")) is getattr(torch, name)
