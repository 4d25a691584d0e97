"""The rows that belong beside every result: what would have been had without distilling.

With soft labels random real images come close to distilled ones (DD-Ranking, 2025), so a
number without them says little.

    random       as many real images of the same clients, labelled the same way: for each student
                 other ones
    herding      the same, chosen by the distiller of that name, once for all students
    k_center     the same
    hard_label   the distilled images with their hard labels alone
    ensemble     the mean answer of all teachers: no set, N models
    coverage_ensemble  the same, class by class weighted by who has seen how much of the class: as
                 labels are with `relabel: {name: mean, teacher_choice: coverage}`
    consensus_ensemble  the same, each image by whose it may be: `relabel: {name: consensus}`
    weight_average  the average of the teachers' weights: one model, from N that share no start
    fedavg       the average of weights with a common start, after one round and after several:
                 see `strategies/fedavg.py`
    full_data    the students' network trained on all real data: the upper line
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedistill import registry, slots
from fedistill.distillers.base import Distiller, Task
from fedistill.fusion import class_weighted, consensus
from fedistill.seeding import derive_seed
from fedistill.sets import SyntheticSet
from fedistill.shares import Share, integrate
from fedistill.slots import Plan
from fedistill.student import Score
from fedistill.training import top1

WEIGHTED: Mapping[str, Callable[[Sequence[Tensor], Tensor], Tensor]] = {
    "coverage_ensemble": class_weighted,
    "consensus_ensemble": consensus,
}


def coreset_plan(
    name: str, tasks: Sequence[Task], wanted: Sequence[int], rule: str = "even"
) -> Plan:
    """Deal real images to the clients as the slots of a distilled set are dealt.

    Args:
        name: of the distiller that chooses.
        tasks: one for each client.
        wanted: images of each class, in all.
        rule: a value of `federation.slots`.

    Raises:
        LookupError: as for `slots.allocate`: the clients hold too few images of a class.
    """
    histograms = {task.partition_id: task.shard.histogram(len(wanted)) for task in tasks}
    return slots.RULES[rule](histograms, wanted, _part(name).real_images_per_image)


def coreset(name: str, tasks: Sequence[Task], plan: Plan, number: int = 0) -> SyntheticSet:
    """Let each client choose real images in place of synthetic ones.

    Args:
        name: of the distiller that chooses.
        tasks: one for each client; their counts do not matter.
        plan: for each partition id, how many images of each class.
        number: of the student that the set is for; enters the seed.

    Returns:
        A set without soft labels, ordered like a distilled one.
    """
    asked = [
        replace(
            task,
            counts=plan[task.partition_id],
            seed=derive_seed(task.seed, "coreset", number),
        )
        for task in tasks
    ]
    shares = [
        Share(
            partition_id=task.partition_id,
            images=_part(name).distill(task).images,
            counts=tuple(task.counts),
            seconds={},
        )
        for task in asked
    ]
    return integrate(shares, plan, tasks[0].spec)


def _part(name: str) -> Distiller:
    part = registry.build("distillers", name, {})
    assert isinstance(part, Distiller)
    return part


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


def weighted_ensemble(
    name: str, answers: Sequence[Tensor], weights: Tensor, labels: Tensor
) -> Score:
    """Accuracy of all teachers, heard as labels of clients with different classes are, in percent.

    Args:
        name: of the row, one of `WEIGHTED`.
        answers: logits of each teacher for the test split, [T, num_classes].
        weights: of each teacher in each class, as `fusion.class_weights` gives them.
        labels: of the test split, int64 [T].
    """
    return Score([top1(WEIGHTED[name](answers, weights), labels)], [])


def weight_average(
    states: Sequence[Mapping[str, Tensor]], samples: Sequence[int]
) -> dict[str, Tensor]:
    """Average weights and buffers, weighted by the samples behind them.

    Args:
        states: of networks of one kind.
        samples: that each of them was trained on.

    Returns:
        The average, float64.
    """
    shares = torch.tensor(samples, dtype=torch.float64) / sum(samples)
    return {
        name: torch.stack(
            [
                share * state[name].double().cpu()
                for share, state in zip(shares, states, strict=True)
            ]
        ).sum(0)
        for name in states[0]
    }
