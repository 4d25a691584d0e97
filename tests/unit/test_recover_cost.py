"""A recover step is one forward pass and one backward pass to the pixels; weights get none."""

import torch
from fakes import CONVNET, tiny_images, tiny_spec, tiny_teacher
from torch.utils.flop_counter import FlopCounterMode

from fedistill.distillers.base import Task
from fedistill.distillers.sre2l import SRe2L


def test_a_step_costs_a_forward_and_an_input_backward_pass() -> None:
    spec, teacher, steps, images = tiny_spec(), tiny_teacher(), 4, 6
    task = Task(
        counts=[2, 2, 2],
        shard=tiny_images(),
        teachers=[teacher],
        models=[CONVNET],
        spec=spec,
        seed=0,
        partition_id=0,
        device=torch.device("cpu"),
    )
    with FlopCounterMode(display=False) as forward:
        teacher(torch.zeros(images, spec.channels, spec.size, spec.size))
    with FlopCounterMode(display=False) as recover:
        SRe2L(iterations=steps, class_bn_weight=1.0).distill(task)
    counts = recover.get_flop_counts()["Global"]
    convolution = forward.get_flop_counts()["Global"][torch.ops.aten.convolution]
    real = len(task.shard)  # the class statistics: one pass over the shard
    assert counts[torch.ops.aten.convolution] == convolution * (steps + real / images)
    # A backward pass to the inputs costs what the forward pass costs; one to the weights too
    # would double this.
    assert counts[torch.ops.aten.convolution_backward] == convolution * steps
    assert all(weight.grad is None for weight in teacher.parameters())
