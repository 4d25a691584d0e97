"""Tests at home: how many of its images each student got right, and the sum over all devices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedistill.images import DataSpec, ImageSet
from fedistill.training import logits_of


@dataclass(frozen=True)
class Counts:
    """What a device has found in a test of several students.

    Attributes:
        images: of each class that it tested on, [num_classes].
        correct: how many of them each student got right, [students][num_classes].
    """

    images: tuple[int, ...]
    correct: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Pooled:
    """What all devices have found together.

    Attributes:
        top1: accuracy of each student on all their images, in percent.
        images: how many images that were.
        devices: how many devices had any.
    """

    top1: list[float]
    images: int
    devices: int


def count(
    students: Sequence[nn.Module], held_out: ImageSet, spec: DataSpec, dtype: torch.dtype
) -> Counts:
    """Test students on a device's own images.

    Args:
        students: on the device where they are to compute.
        held_out: the images.
        spec: of the data set.
        dtype: of the convolutions.
    """
    labels = held_out.labels
    images = held_out.histogram(spec.num_classes)
    correct = []
    for student in students:
        right = torch.zeros(len(labels), dtype=torch.bool)
        if len(labels):
            right = logits_of(student, held_out.images, spec, dtype).argmax(1).cpu() == labels
        correct.append(tuple(torch.bincount(labels[right], minlength=spec.num_classes).tolist()))
    return Counts(tuple(images), tuple(correct))


def pool(answers: Iterable[Counts]) -> Pooled | None:
    """Add up what devices have found: every image counts alike; None: there was no image.

    Args:
        answers: of one and the same students.
    """
    tested = [counts for counts in answers if sum(counts.images)]
    if not tested:
        return None
    images = sum(sum(counts.images) for counts in tested)
    right = [
        sum(sum(counts.correct[number]) for counts in tested)
        for number in range(len(tested[0].correct))
    ]
    return Pooled([100 * count / images for count in right], images, len(tested))
