"""APM: its loss by hand and in plain loops, who is trained when on what, and what it costs."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import CONVNET, CPU, tiny_images, tiny_spec, tiny_teacher
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedistill import whitening
from fedistill.distillers import apm
from fedistill.distillers.apm import APM, matching_loss, snapshot_epochs, teacher_turns
from fedistill.distillers.base import Task, first_images
from fedistill.images import DataSpec
from fedistill.models import build
from fedistill.seeding import generator
from fedistill.teacher import freeze

SPEC = tiny_spec()
QUICK = APM(iterations=4, gap=1, lr=0.1, student_epochs=4, snapshots=2, student_batch_size=4)


def task(counts: Sequence[int] = (2, 2, 2), **changes: Any) -> Task:
    values = {
        "counts": list(counts),
        "shard": tiny_images(),
        "teachers": [tiny_teacher()],
        "models": [CONVNET] * len(changes.get("teachers", [0])),
        "spec": SPEC,
        "seed": 0,
        "partition_id": 0,
        "device": CPU,
    }
    return Task(**{**values, **changes})


def student_of(task: Task, options: APM = QUICK, number: int = 0) -> list[nn.Module]:
    return apm._train_student(options, task, first_images(task, "real"), 0, number)


def test_the_loss_by_hand():
    teacher = torch.tensor([[1.0, -1.0], [2.0, 2.0]])
    students = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[1.0, -5.0], [0.0, 4.0]]])
    # Mean distances: image 0 has 1 and 2, image 1 has 1 and 2.
    entropies = torch.tensor([math.log(1 + math.exp(-2)), math.log(2)])
    labels = torch.tensor([0, 1])
    torch.testing.assert_close(matching_loss(teacher, students, labels, 0.5), entropies / 2 - 3)
    found = matching_loss(teacher, students, labels, 0.5, "log")
    torch.testing.assert_close(found, entropies / 2 - math.log(2))


@pytest.mark.parametrize("form", ["l1", "log"])
def test_the_loss_is_the_plain_formula(form: apm.Form):
    stream = generator(0)
    teacher, students = (torch.randn(n, generator=stream) for n in ((4, 3), (5, 4, 3)))
    labels = torch.tensor([0, 2, 1, 1])
    for image, label in enumerate(labels.tolist()):
        total = -0.1 * math.log(teacher[image].softmax(0)[label])
        for snapshot in students:
            gaps = [abs(float(snapshot[image, c]) - float(teacher[image, c])) for c in range(3)]
            distance = sum(gaps) / 3
            total -= math.log(distance) if form == "log" else distance
        found = matching_loss(teacher, students, labels, 0.1, form)[image]
        assert found.item() == pytest.approx(total, rel=1e-5)


def test_a_student_that_agrees_does_not_break_the_logarithm():
    teacher = torch.zeros(1, 3, requires_grad=True)
    loss = matching_loss(teacher, torch.zeros(2, 1, 3), torch.tensor([0]), 0.1, "log").sum()
    (gradient,) = torch.autograd.grad(loss, teacher)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_snapshots_are_evenly_spaced_and_end_at_the_end():
    assert snapshot_epochs(250, 5) == [50, 100, 150, 200, 250]
    assert snapshot_epochs(7, 3) == [2, 4, 7]
    for count in range(1, 8):
        epochs = snapshot_epochs(7, count)
        assert epochs == sorted(set(epochs))
        assert (len(epochs), epochs[-1]) == (count, 7)


def test_teachers_take_turns_in_random_order():
    turns = teacher_turns(4, 10, generator(0))
    assert len(turns) == 10
    for start in (0, 4):
        assert sorted(turns[start : start + 4]) == [0, 1, 2, 3]
    assert turns == teacher_turns(4, 10, generator(0))
    assert turns != teacher_turns(4, 10, generator(1))
    assert teacher_turns(1, 3, generator(0)) == [0, 0, 0]


def test_every_teacher_is_asked():
    teachers = [tiny_teacher(seed) for seed in range(3)]
    asked = set()
    for number, teacher in enumerate(teachers):
        teacher.register_forward_hook(lambda *_, number=number: asked.add(number))
    replace(QUICK, iterations=5).distill(task(teachers=teachers))
    assert asked == {0, 1, 2}


def test_a_new_student_every_gap_and_its_learning_rates(monkeypatch: pytest.MonkeyPatch):
    trained, rates = [], []
    train, set_rate = apm._train_student, apm.set_learning_rate

    def watched(*arguments: Any) -> list[nn.Module]:
        trained.append(arguments[-1])
        return train(*arguments)

    def told(optimizer: torch.optim.Optimizer, lr: float) -> None:
        rates.append(round(lr, 4))
        set_rate(optimizer, lr)

    monkeypatch.setattr(apm, "_train_student", watched)
    monkeypatch.setattr(apm, "set_learning_rate", told)
    options = replace(QUICK, iterations=7, gap=2, student_epochs=2, student_lr=0.01)
    options.distill(task())
    student = [0.01, 0.001]
    first, then = [0.1], [0.03]
    assert trained == [0, 1, 2]
    assert rates == [*student, *first * 3, *student, *first, *then * 2, *student, *then]


def test_a_student_learns_the_logits_and_its_snapshots_stand_still():
    given = task((8, 8, 8), shard=tiny_images(8))
    images = first_images(given, "real")
    wanted = given.teachers[0](images)
    options = replace(QUICK, student_epochs=60, snapshots=3, student_lr=0.05, shift=0)
    start = build(CONVNET, SPEC, 0, "recover", 0, 0, "student", 0, "weights").eval()
    kept = student_of(given, options)
    far, *errors = [(net(images) - wanted).abs().mean().item() for net in (start, *kept)]
    assert errors[-1] < 0.2 * far
    assert len({round(error, 6) for error in errors}) == 3
    for net in kept:
        assert not any(module.training for module in net.modules())
        assert not any(weight.requires_grad for weight in net.parameters())
        norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
        assert norm.num_batches_tracked > 0
        assert norm.running_mean.abs().max() > 0


def test_every_student_is_another_and_the_same_one_again():
    def weights(**arguments: Any) -> Tensor:
        number = arguments.pop("number", 0)
        return student_of(task(**arguments), number=number)[-1].classifier.weight

    assert torch.equal(weights(), weights())
    for other in ({"number": 1}, {"seed": 1}, {"partition_id": 1}, {"attempt": 1}):
        assert not torch.equal(weights(), weights(**other)), other


def reference_gradient(images: Tensor, given: Task, students: Sequence[nn.Module]) -> Tensor:
    """Of the sum of all images' losses, in one pass."""
    images = images.clone().requires_grad_()
    logits = given.teachers[0](images)
    answers = torch.stack([net(images) for net in students])
    loss = matching_loss(logits, answers, given.labels, 0.1).sum()
    return torch.autograd.grad(loss, images)[0]


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 100])
def test_chunks_add_up_to_the_whole_gradient(chunk: int):
    given = task()
    images, students = first_images(given, "real"), student_of(given)
    wanted = reference_gradient(images, given, students)
    images.requires_grad_()
    descent = apm._Descent(replace(QUICK, chunk=chunk), given)
    descent.gradient(images, torch.arange(6), given.teachers[0], students)
    torch.testing.assert_close(images.grad, wanted)

    chosen = torch.tensor([0, 3, 5])
    loss = descent.gradient(images, chosen, given.teachers[0], students)
    assert images.grad is not None
    torch.testing.assert_close(images.grad[chosen], wanted[chosen])
    assert images.grad[[1, 2, 4]].abs().max() == 0
    logits, answers = given.teachers[0](images), torch.stack([net(images) for net in students])
    mean = matching_loss(logits, answers, given.labels, 0.1)[chosen].mean()
    torch.testing.assert_close(loss, mean.detach())


def test_chunks_and_batches_in_a_whole_run():
    whole = QUICK.distill(task())
    pieces = replace(QUICK, chunk=2).distill(task())
    assert (whole.images.int() - pieces.images.int()).abs().max() <= 1
    assert [loss for _, loss in pieces.curve] == pytest.approx([loss for _, loss in whole.curve])
    some = replace(QUICK, batch_size=2, iterations=1, lr=30.0).distill(task()).images
    start = SPEC.to_uint8(first_images(task(), "real"))
    changed = (some != start).flatten(1).any(1)
    assert changed.sum() == 2


def test_the_start_is_real_images_or_noise():
    still = replace(QUICK, lr=1e-12)
    assert still.uses_real_images
    images = still.distill(task()).images
    shard = tiny_images()
    for image, label in zip(images, task().labels, strict=True):
        assert any(torch.equal(image, real) for real in shard.images[shard.labels == label])
    noise = replace(still, init="noise")
    assert not noise.uses_real_images
    others = [noise.distill(task(shard=tiny_images(seed=seed))).images for seed in (0, 1)]
    assert torch.equal(*others)


def test_no_image_starts_as_the_copy_of_another():
    images = QUICK.distill(task((3, 3, 3), shard=tiny_images(1))).images
    assert len({tuple(image.flatten().tolist()) for image in images}) == 9


def test_images_move_to_where_the_two_disagree():
    still, moving = (
        replace(QUICK, iterations=12, gap=11, lr=lr).distill(task()).curve for lr in (1e-12, 1.0)
    )
    assert still[0] == moving[0]
    assert moving[-1][1] < 1.5 * still[-1][1] < 0


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_no_batch_norm_is_needed(norm: Any):
    config = replace(CONVNET, norm=norm)
    teacher = freeze(build(config, SPEC, 0))
    QUICK.check(teacher, config, SPEC)
    images = QUICK.distill(task(teachers=[teacher], models=[config])).images
    assert images.shape == (6, 1, 8, 8)


def test_students_may_run_in_bfloat16():
    first, second = (QUICK.distill(task(dtype=torch.bfloat16)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert all(math.isfinite(loss) for _, loss in first.curve)


def whitened() -> DataSpec:
    return replace(SPEC, zca=whitening.fit(tiny_images().images))


def test_it_works_in_whitened_pixels():
    spec = whitened()
    given = task(spec=spec, teachers=[tiny_teacher(spec=spec)])
    first, second = (QUICK.distill(given).images for _ in range(2))
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert torch.equal(replace(QUICK, lr=1e-12).distill(given).images, start := real(given))
    assert not torch.equal(first, start)


def real(given: Task) -> Tensor:
    return given.spec.to_uint8(first_images(given, "real"))


def test_a_step_costs_one_pass_of_each_snapshot_and_one_of_the_teacher():
    options = replace(QUICK, iterations=6, gap=2, student_epochs=4, snapshots=3)
    given, count, rounds = task(), 6, 2
    with FlopCounterMode(display=False) as one:
        given.teachers[0](torch.zeros(1, 1, 8, 8))
    with FlopCounterMode(display=False) as all_of_it:
        options.distill(given)
    forward = one.get_flop_counts()["Global"][torch.ops.aten.convolution]
    counts = all_of_it.get_flop_counts()["Global"]
    steps = options.iterations * (options.snapshots + 1)
    student = rounds * options.student_epochs
    assert counts[torch.ops.aten.convolution] == forward * count * (steps + student + rounds)
    # Students: gradients of all weights and of all inputs but the images. Images: no weights.
    first_layer = 2 * 8 * 9 * 64
    assert counts[torch.ops.aten.convolution_backward] == count * (
        forward * steps + (2 * forward - first_layer) * student
    )


def test_every_broken_rule_is_told_at_once():
    with pytest.raises(ValueError, match="accepted") as raised:
        APM(
            iterations=0,
            gap=-1,
            lr=0.0,
            ce_weight=-1.0,
            batch_size=0,
            snapshots=9,
            student_epochs=8,
            student_lr=-1.0,
            student_batch_size=0,
            shift=-1,
            chunk=0,
        )
    message = str(raised.value)
    assert message.count("accepted: ") == 10
    assert "snapshots is 9; accepted: up to student_epochs, which is 8" in message
    assert "gap is -1; accepted: 0 or more" in message
    assert "lr is 0.0; accepted: above 0" in message
