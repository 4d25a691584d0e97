"""Make one answer of the answers of several teachers, who may have seen different classes.

    class_weighted  each class by who has seen it: a weighted mean of log-probabilities
    consensus       each image by whose it may be: a weighted mean of probabilities

A teacher that never saw a class gives it to another one, and is as sure of that as it is of
anything. An average by class takes its word on its own classes for every image, and so for those
that are none of its own. `consensus` asks whose an image is before it listens.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Histograms = Mapping[int, Sequence[int]]  # images of each class that a teacher was trained on

_LEAST = 1e-30  # of a probability: who is sure beyond that may be wrong, and 0 would part the walk
_NUMBERS = 1 << 22  # of a block of images, in all answers or in all chains: 32 MB


def coverage(histograms: Histograms, teachers: Sequence[int], labels: Tensor) -> Tensor:
    """Return how many images of each image's class every teacher was trained on, float64 [M, N].

    Args:
        histograms: by partition id.
        teachers: partition ids.
        labels: hard labels of the set, [M].
    """
    held = torch.tensor([[*histograms[n]] for n in teachers], dtype=torch.float64).T[labels]
    # Nobody among these saw the class: all are as good.
    return torch.where(held.sum(1, keepdim=True) > 0, held, torch.ones_like(held))


def class_weights(histograms: Histograms, teachers: Sequence[int]) -> Tensor:
    """Return each teacher's share of the images of each class, float32 [N, num_classes].

    Of the real images that these teachers were trained on. So who never saw a class has no say in
    it, and who saw nearly all of it decides it nearly alone.

    Args:
        histograms: by partition id.
        teachers: partition ids.
    """
    num_classes = len(histograms[teachers[0]])
    held = coverage(histograms, teachers, torch.arange(num_classes)).T
    return (held / held.sum(0)).float()


def class_weighted(answers: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the sum of teachers' log-probabilities, class by class weighted.

    Args:
        answers: logits of each teacher, [M, num_classes].
        weights: of each teacher in each class, [N, num_classes].

    Returns:
        Float32 [M, num_classes].
    """
    total = torch.zeros(answers[0].shape)
    for weight, logits in zip(weights, answers, strict=True):
        total += weight * logits.float().log_softmax(1)
    return total


def consensus(answers: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the log-probabilities in which teachers and their coverage agree about each image.

    Were the images of a class alike at all clients, and every teacher right about those of its
    own, the laws of total probability would bind together what an image shows and whose it is::

        p(class | image)  = sum over clients of  p(client | image) p(class | image, client)
        p(client | image) = sum over classes of  p(class | image)  p(client | class)

    where a teacher knows p(class | image, client), and its share of the images of a class is
    p(client | class). So p(client | image) is the stationary distribution of a walk from a client
    to a class that its teacher sees, and on to a client that holds such images. For each image
    those are heard who know what it shows, with no parameter to choose. Who holds a single class,
    and sees it everywhere, is left when another one holds some of it too and sees something else.
    Equal weights for all give the mean of the probabilities.

    Ours (experiments/LOG.md says what it is worth). Others learn whose an image is, by clients'
    discriminators (Jang et al., "Provably near-optimal federated ensemble distillation with
    negligible overhead", 2025) or densities (Kovalchuk et al., "Who to trust?", 2025).

    Args:
        answers: logits of each teacher, [M, num_classes].
        weights: of each teacher in each class, [N, num_classes]; they add up to 1 in each class.

    Returns:
        Float32 [M, num_classes].
    """
    held = weights.double()
    found = []
    block = max(1, _NUMBERS // (len(held) * max(held.shape)))
    for parts in zip(*(logits.split(block) for logits in answers), strict=True):
        seen = torch.stack(parts, 1).double().softmax(2).clamp_min(_LEAST)  # [m, N, num_classes]
        clients = _stationary(seen @ held.T)
        found.append((clients[:, None] @ seen)[:, 0].log().float())
    return torch.cat(found)


def _stationary(chains: Tensor) -> Tensor:
    """Return the stationary distributions, [m, N], of chains, [m, N, N], which it overwrites.

    State reduction (Grassmann, Taksar and Heyman 1985): it adds and divides positive numbers and
    takes none from another, so it is exact where the walk leaves a client once in 1e20 steps.
    """
    count = chains.shape[1]
    for last in range(count - 1, 0, -1):
        onward = chains[:, last, :last]
        before = chains[:, :last, last] / onward.sum(1, keepdim=True)
        chains[:, :last, last] = before
        chains[:, :last, :last] += before[:, :, None] * onward[:, None]
    found = torch.ones(chains.shape[:2], dtype=chains.dtype)
    for state in range(1, count):
        found[:, state] = (found[:, :state] * chains[:, :state, state]).sum(1)
    return found / found.sum(1, keepdim=True)
