"""The rows that belong beside every result: what would have been had without distilling.

With soft labels random real images come close to distilled ones (DD-Ranking, 2025), so a
number without them says little.

    random       as many random real images, drawn from the same clients, labelled the same way
    hard_label   the distilled images with their hard labels alone
    ensemble     the mean answer of all teachers: no set, N models
    full_data    the students' network trained on all real data: the upper line
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedistill.config import ModelConfig, TeacherConfig
from fedistill.images import DataSpec, ImageSet
from fedistill.seeding import generator
from fedistill.sets import SyntheticSet
from fedistill.slots import Plan
from fedistill.student import Curve, Score
from fedistill.teacher import squeeze
from fedistill.training import accuracy, top1


def random_set(
    train: ImageSet, shards: Mapping[int, Tensor], plan: Plan, spec: DataSpec, seed: int
) -> SyntheticSet:
    """Draw random real images in place of each client's synthetic ones.

    Args:
        train: the training split.
        shards: indices into it of each partition id.
        plan: for each partition id, how many images of each class.
        spec: of the data set.
        seed: decides which images.

    Returns:
        A set ordered like an integrated one. A client with fewer images of a class than the
        plan asks for repeats them.
    """
    chosen, clients = [], []
    for label in range(spec.num_classes):
        for client, counts in sorted(plan.items()):
            mine = shards[client][train.labels[shards[client]] == label]
            stream = generator(seed, "random", client, label)
            order = mine[torch.randperm(len(mine), generator=stream)]
            repeats = -(-counts[label] // max(1, len(order)))
            chosen.append(order.repeat(repeats)[: counts[label]])
            clients += [client] * counts[label]
    index = torch.cat(chosen)
    return SyntheticSet(
        spec=spec,
        images=train.images[index],
        hard_labels=train.labels[index],
        clients=torch.tensor(clients),
    )


def hard_label_set(synthetic: SyntheticSet) -> SyntheticSet:
    """Return the same images without their soft labels."""
    return replace(synthetic, soft_labels=None)


def ensemble(answers: Sequence[Tensor], labels: Tensor) -> Score:
    """Accuracy of the mean probability of all teachers, in percent.

    Args:
        answers: logits of each teacher for the test split, [T, num_classes].
        labels: of the test split, int64 [T].
    """
    probabilities = torch.stack([logits.softmax(1) for logits in answers])
    return Score([top1(probabilities.mean(0), labels)], [])


def full_data(
    train: ImageSet,
    test: ImageSet,
    spec: DataSpec,
    model: ModelConfig,
    config: TeacherConfig,
    *,
    seed: int,
    number: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, Curve]:
    """Train one network on the whole training split, with the teachers' recipe, and test it."""
    network, curve = squeeze(
        train,
        spec,
        model,
        config,
        seed=seed,
        path=("full data", number),
        device=device,
        dtype=dtype,
        report=lambda done, total, loss: report(done, total),
    )
    return accuracy(network, test, spec, dtype), curve
