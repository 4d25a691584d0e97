"""Representative images: those nearest the centres of clusters of features (DREAM)."""

import warnings

import torch
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
    rows = features.detach().float().cpu()
    if count >= len(rows):
        return torch.arange(len(rows))
    from sklearn.cluster import KMeans  # a second to import: only who clusters waits for it
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    search = KMeans(count, n_init=1, init="k-means++", max_iter=_ROUNDS, random_state=seed % 2**32)
    # Threads add up in whatever order they end, and the choice would not repeat.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: fewer clusters
        search.fit(rows.numpy())
    centres = torch.from_numpy(search.cluster_centers_).float()
    nearest = torch.cdist(centres, rows).argmin(1)
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    chosen[nearest] = True
    found = chosen.nonzero()[:, 0]
    others = (~chosen).nonzero()[:, 0]
    return torch.cat([found, others[: count - len(found)]])
