"""Representative images: those nearest the centres of clusters of features (DREAM).

K-means is scikit-learn's on the CPU. Features on a GPU are clustered there: one thread of the CPU
takes half a second for 1000 x 2048 of them, and a step that needs no clusters a third of that.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDS = 20  # of Lloyd's algorithm; centres hardly move after that


def representatives(features: Tensor, count: int, seed: int) -> Tensor:
    """Choose one row for each of `count` clusters: the one nearest its centre.

    Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching" (ICCV 2023),
    Sec. 3.3. Rows of large and of small clusters then count alike.

    Args:
        features: float [n, D].
        count: of clusters, at most n.
        seed: decides where the search starts.

    Returns:
        Different rows, int64 [count] on the CPU. Where rows are equal there are fewer clusters
        than asked for; other rows in order fill up.
    """
    rows = features.detach().float()
    if count >= len(rows):
        return torch.arange(len(rows))
    centres = (_library if rows.device.type == "cpu" else lloyd)(rows, count, seed)
    nearest = torch.cdist(centres, rows).argmin(1).cpu()
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    chosen[nearest] = True
    found = chosen.nonzero()[:, 0]
    others = (~chosen).nonzero()[:, 0]
    return torch.cat([found, others[: count - len(found)]])


def _library(rows: Tensor, count: int, seed: int) -> Tensor:
    """Return the centres that scikit-learn finds, [count, D]."""
    from sklearn.cluster import KMeans  # a second to import: only who clusters waits for it
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    search = KMeans(count, n_init=1, init="k-means++", max_iter=_ROUNDS, random_state=seed % 2**32)
    # Threads add up in whatever order they end, and the choice would not repeat.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: fewer clusters
        search.fit(rows.numpy())
    return torch.from_numpy(search.cluster_centers_).float()


def lloyd(rows: Tensor, count: int, seed: int) -> Tensor:
    """Return the centres of clusters, [count, D], found where the rows are.

    Lloyd's algorithm from a start by k-means++: each next centre is a row, drawn in proportion to
    its squared distance from those before. Nothing in it makes the CPU wait for a GPU.

    Args:
        rows: float [n, D].
        count: of clusters, below n.
        seed: of the start.
    """
    stream = torch.Generator().manual_seed(seed)
    # Of things with weights w, the one with the largest w / Exp(1) is drawn in proportion to w.
    rivals = torch.empty(count, len(rows)).exponential_(generator=stream).to(rows.device)
    weights = torch.ones_like(rows[:, 0])
    distances = torch.full_like(weights, torch.inf)
    drawn = []
    for rival in rivals:
        drawn.append(rows.index_select(0, (weights / rival).argmax()[None]))
        distances = torch.minimum(distances, (rows - drawn[-1]).square().sum(1))
        weights = distances
    centres = torch.cat(drawn)
    for _ in range(_ROUNDS):
        member = F.one_hot(torch.cdist(rows, centres).argmin(1), count).to(rows.dtype)
        sizes = member.sum(0)[:, None]
        # A product, and no sum by index: that adds up in whatever order threads of a GPU end.
        centres = torch.where(sizes > 0, member.T @ rows / sizes.clamp(min=1), centres)
    return centres
