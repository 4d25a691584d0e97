"""G-VBSM and EDC ask one teacher once in an iteration, whatever the number of teachers is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes import CONVNET, tiny_images, tiny_spec, tiny_teacher
from torch.utils.flop_counter import FlopCounterMode

from fedistill.distillers.base import Task
from fedistill.distillers.edc import EDC
from fedistill.distillers.gvbsm import GVBSM

STEPS, IMAGES = 4, 6


def operations(work: Callable[[], Any]) -> dict[Any, int]:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_flop_counts()["Global"]


@pytest.mark.parametrize(
    ("part", "forward_passes"),
    [
        (GVBSM(iterations=STEPS), 1),
        (EDC(iterations=STEPS, flatness_weight=0.0), 1),
        (EDC(iterations=STEPS), 2),  # the moving average of the images is asked about too
    ],
    ids=["gvbsm", "edc_without_flatness", "edc"],
)
@pytest.mark.parametrize("teachers", [1, 2])
def test_a_step_costs_a_forward_and_an_input_backward_pass_of_one_teacher(
    part: Any, forward_passes: int, teachers: int
) -> None:
    spec = tiny_spec()
    networks = [tiny_teacher(number) for number in range(teachers)]
    task = Task(
        counts=[2, 2, 2],
        shard=tiny_images(),
        teachers=networks,
        models=[CONVNET] * teachers,
        spec=spec,
        seed=0,
        partition_id=0,
        device=torch.device("cpu"),
    )
    forward = operations(
        lambda: networks[0](torch.zeros(IMAGES, spec.channels, spec.size, spec.size))
    )
    counts = operations(lambda: part.distill(task))
    convolution = forward[torch.ops.aten.convolution]
    real = teachers * len(task.shard)  # the statistics: one pass of every teacher over the shard
    expected = convolution * (forward_passes * STEPS + real / IMAGES)
    assert counts[torch.ops.aten.convolution] == expected
    # A backward pass to the inputs costs what the forward pass costs; one to the weights too
    # would double this.
    assert counts[torch.ops.aten.convolution_backward] == convolution * STEPS
    assert all(weight.grad is None for network in networks for weight in network.parameters())
