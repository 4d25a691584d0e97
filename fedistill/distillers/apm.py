"""APM: images on which a teacher and a student of the same images disagree most.

Chen et al., "Dataset Distillation via Adversarial Prediction Matching" (2023); DB-APM is built on
it (DB Eq. 8). Every `gap` + 1 iterations a random teacher labels the current images, a fresh
student is trained to give their logits back, and `snapshots` states of it are kept. In between
the images descend

    L = -sum_k mean_c |z_S,k - z_T| + ce_weight * CE(z_T, y)                      (form: l1)
    L = -sum_k log mean_c |z_S,k - z_T| + ce_weight * CE(z_T, y)                  (form: log)

with z_T, z_S,k the logits of the teacher and of snapshot k, for the images as they are. What the
student cannot predict yet is what the next one has to learn from. The authors' code has the first
form, the paper the second.

Departures, each for a reason:
- the loss is summed over the images of a step, so that an image moves as far alone as among
  thousands. The authors divide by their number: lr 1 for 500 images is 0.002 here;
- teachers take turns in random order, so that a short run asks all of them too;
- a student has the network of the teacher that it imitates (the authors: one network for all);
- students see random shifts, and mirrors where the data set allows them (theirs: DSA);
- pixels stay between black and white at every step, and end as uint8 (theirs: floats, whitened;
  `data: {zca: true}` whitens here);
- a class with fewer real images than wanted starts the others from noise: copies would get the
  same gradient at every step, and stay copies;
- the last images are kept (theirs: the best on the test split, looked up every 50 iterations).

Cost of an image: `iterations` x (`snapshots` + 1) forward and backward passes to the pixels, and
`iterations` / (`gap` + 1) x `student_epochs` forward and backward passes of students: 540 and
1200 with the defaults, which suit two CPU cores. They move real images a little; from noise they
are far too few (MNIST, IPC 10: students stay near chance).

Published: 2500 iterations (DB: 1800), gap 2, 250 epochs, 5 snapshots, ce_weight 0.1, student_lr
0.02 to 0.1 in batches of 256, 100 teachers (DB: 10), start from real images: 15,000 and 209,000
passes. Image lr, as it is called here: 0.002 for CIFAR-10 at IPC 50 (1 for 500 images), 0.04 to
0.08 for 64 pixels.

All images of a client enter its students, so the first k of a class are no APM set of IPC k.

Published accuracy (ConvNet with 128 filters, ZCA, run by DB): CIFAR-10 IPC 10 / 50 41.5 / 73.4,
DB-APM 62.7 / 74.3; CIFAR-100 IPC 1 / 10 10.9 / 41.1, DB-APM 31.8 / 44.8.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedistill import crops
from fedistill.crops import ViewOptions
from fedistill.distillers.base import Distilled, Distiller, Progress, Task, first_images
from fedistill.models import build
from fedistill.rules import above_zero, at_least, check
from fedistill.teacher import freeze
from fedistill.training import autocast, seeded, set_learning_rate

Form = Literal["l1", "log"]

# Of the authors' code.
_MOMENTUM, _DECAY = 0.5, 0.3  # of the images; the learning rate decays once, at half
_STUDENT_MOMENTUM, _STUDENT_WEIGHT_DECAY, _STUDENT_DECAY = 0.9, 5e-4, 0.1

_LEAST = 1e-8  # of a logarithm: a student that agrees in all digits has nothing to say


@dataclass(frozen=True, kw_only=True)
class APM(Distiller):
    """Options of APM.

    Attributes:
        iterations: steps of the images.
        gap: iterations between those that train a new student.
        lr: of SGD (momentum 0.5), in normalised pixel units for each image; x 0.3 at half.
        ce_weight: of the teacher's cross-entropy on the hard labels.
        form: `l1` of the code, or `log` of the paper.
        init: `real` starts from random real images, `noise` from N(0, 1) in normalised units.
        batch_size: images of one step, drawn anew each time; None: all.
        snapshots: states of each student that are kept, evenly over its epochs, the last included.
        student_epochs: of each student.
        student_lr: of its SGD (momentum 0.9); x 0.1 at half.
        student_batch_size: images in each of its steps.
        shift: most pixels of the random shift that it sees; None: an eighth of the image.
        chunk: most images in a network with a graph to the pixels; terms see a chunk at a time.
    """

    iterations: int = 90
    gap: int = 2
    lr: float = 0.003
    ce_weight: float = 0.1
    form: Form = "l1"
    init: Literal["real", "noise"] = "real"
    batch_size: int | None = None
    snapshots: int = 5
    student_epochs: int = 40
    student_lr: float = 0.1
    student_batch_size: int = 20
    shift: int | None = None
    chunk: int = 250

    def __post_init__(self) -> None:
        epochs = self.student_epochs
        check(
            at_least(self, 0, "gap", "ce_weight", "shift"),
            at_least(self, 1, "iterations", "batch_size", "snapshots", "chunk"),
            at_least(self, 1, "student_epochs", "student_batch_size"),
            above_zero(self, "lr", "student_lr"),
            (
                not 1 <= epochs < self.snapshots,
                f"snapshots is {self.snapshots}; accepted: up to student_epochs, which is {epochs}",
            ),
        )

    @property
    def optimises_jointly(self) -> bool:
        """All of them enter its students."""
        return True

    @property
    def uses_real_images(self) -> bool:
        """Only a start from real images shows any."""
        return self.init == "real"

    def distill(self, task: Task) -> Distilled:
        """Optimise all images of a client together."""
        images = first_images(task, self.init).to(task.device).requires_grad_()
        optimizer = torch.optim.SGD([images], lr=self.lr, momentum=_MOMENTUM)
        rounds = -(-self.iterations // (self.gap + 1))
        turns = teacher_turns(len(task.teachers), rounds, task.stream("teachers"))
        draws = task.stream("images")
        descent = _Descent(self, task)
        progress = Progress(task, self.iterations)
        for step in range(self.iterations if len(images) else 0):
            number, since = divmod(step, self.gap + 1)
            if since == 0:
                which = turns[number]
                students = _train_student(self, task, images.detach(), which, number)
            chosen = torch.randperm(len(images), generator=draws)[: self.batch_size].sort().values
            loss = descent.gradient(images, chosen, task.teachers[which], students)
            set_learning_rate(optimizer, self.lr * (_DECAY if 2 * step >= self.iterations else 1))
            optimizer.step()
            task.spec.clamp_(images)
            progress.step(loss)
        return Distilled(task.spec.to_uint8(images.detach()).cpu(), progress.curve)


class _Descent:
    """The gradient of a step, some images at a time."""

    def __init__(self, options: APM, task: Task) -> None:
        self._options = options
        self._labels = task.labels.to(task.device)
        self._terms = task.terms()

    def gradient(
        self, images: Tensor, chosen: Tensor, teacher: nn.Module, students: Sequence[nn.Module]
    ) -> Tensor:
        """Set `images.grad`, 0 for those not chosen; return the mean loss of the chosen ones."""
        images.grad = torch.zeros_like(images)
        losses = []
        for index in chosen.to(images.device).split(self._options.chunk):
            own = images.detach()[index].requires_grad_()
            # Each image's own loss, whatever the number of images: the sum, not the mean.
            loss = self._loss(own, self._labels[index], teacher, students) * len(index)
            images.grad[index] = torch.autograd.grad(loss, own)[0]
            losses.append(loss.detach())
        return torch.stack(losses).sum() / len(chosen)

    def _loss(
        self, images: Tensor, labels: Tensor, teacher: nn.Module, students: Sequence[nn.Module]
    ) -> Tensor:
        """Return the mean loss of some images, extra terms included."""
        inputs = images.clone(memory_format=torch.channels_last)
        answers = torch.stack([student(inputs) for student in students])
        options = self._options
        loss = matching_loss(
            teacher(inputs), answers, labels, options.ce_weight, options.form
        ).mean()
        for weight, term in self._terms:
            loss = loss + weight * term(images, labels)
        return loss


def matching_loss(
    teacher: Tensor, students: Tensor, labels: Tensor, ce_weight: float, form: Form = "l1"
) -> Tensor:
    """Agreement of a teacher with the snapshots of a student, and its cross-entropy (DB Eq. 8).

    Args:
        teacher: logits, [B, C].
        students: logits of each snapshot, [K, B, C].
        labels: int64 [B].
        ce_weight: of the cross-entropy.
        form: whether distances count as they are, or their logarithms.

    Returns:
        The loss of each image, [B].
    """
    distances = (students - teacher).abs().mean(2)
    if form == "log":
        distances = distances.clamp(min=_LEAST).log()
    return ce_weight * F.cross_entropy(teacher, labels, reduction="none") - distances.sum(0)


def snapshot_epochs(epochs: int, count: int) -> list[int]:
    """Say after how many epochs a student is kept: evenly, the last time at the end.

    250 epochs and 5 snapshots give 50, 100, 150, 200, 250, as published.
    """
    return [epochs * (number + 1) // count for number in range(count)]


def teacher_turns(teachers: int, turns: int, stream: torch.Generator) -> list[int]:
    """Draw whose turn it is: a random order of all teachers, then another, and so on."""
    rounds = -(-turns // teachers)
    orders = [torch.randperm(teachers, generator=stream) for _ in range(rounds)]
    return torch.cat(orders).tolist()[:turns]


def _train_student(
    options: APM, task: Task, images: Tensor, which: int, number: int
) -> list[nn.Module]:
    """Train student `number` on the logits of teacher `which` for the images [M, C, H, W].

    Returns:
        Its snapshots, in eval mode, without gradients.
    """
    targets = _label(task, task.teachers[which], images, options.chunk)
    path = ("recover", task.partition_id, task.attempt, "student", number)
    student = build(task.models[which], task.spec, task.seed, *path, "weights").to(task.device)
    stream = task.stream("student", number, "batches")
    views = ViewOptions(
        shift=max(1, task.spec.size // 8) if options.shift is None else options.shift,
        flip=task.spec.flip,
    )
    outside = task.spec.outside(task.device)
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=options.student_lr,
        momentum=_STUDENT_MOMENTUM,
        weight_decay=_STUDENT_WEIGHT_DECAY,
        fused=True,
    )
    batches = -(-len(images) // options.student_batch_size)
    kept: list[nn.Module] = []
    wanted = snapshot_epochs(options.student_epochs, options.snapshots)
    with seeded(student, task.seed, *path):
        for epoch in range(options.student_epochs):
            decay = _STUDENT_DECAY if 2 * epoch >= options.student_epochs else 1
            set_learning_rate(optimizer, options.student_lr * decay)
            order = torch.randperm(len(images), generator=stream).to(task.device)
            for index in order.tensor_split(batches):
                seen = crops.draw(len(index), task.spec.size, views, stream)
                inputs = crops.apply(images[index], seen, outside)
                with autocast(task.device, task.dtype):
                    logits = student(inputs.contiguous(memory_format=torch.channels_last))
                loss = (logits.float() - targets[index]).abs().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if epoch + 1 in wanted:
                kept.append(freeze(copy.deepcopy(student)))
    return kept


@torch.no_grad()
def _label(task: Task, teacher: nn.Module, images: Tensor, chunk: int) -> Tensor:
    """Return a teacher's logits for the images as they are, float32 [M, num_classes]."""
    with autocast(task.device, task.dtype):
        parts = images.contiguous(memory_format=torch.channels_last).split(chunk)
        return torch.cat([teacher(part).float() for part in parts])
