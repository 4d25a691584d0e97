"""t-SNE: where a student's features put synthetic images among real ones."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedistill import mosaic
from fedistill.images import ImageSet
from fedistill.models.features import features_in_parts
from fedistill.seeding import derive_seed, generator
from fedistill.sets import SyntheticSet

_REAL, _SYNTHETIC = 400, 400  # most points of each: more take seconds, and hide the picture
_ROUNDS = 400  # scikit-learn has 1000; the picture hardly changes after these
_PERPLEXITY = 30.0  # van der Maaten and Hinton (2008): 5 to 50


class Embedding(NamedTuple):
    """Points in the plane, real images first.

    Attributes:
        points: float32 [R + S, 2].
        labels: int64 [R + S].
        real: R, how many of them are real.
    """

    points: Tensor
    labels: Tensor
    real: int


def embed(
    network: nn.Module, synthetic: SyntheticSet, test: ImageSet, tiles: int, seed: int
) -> Embedding:
    """Embed the penultimate features of a set and of random test images together.

    Args:
        network: a student of the set.
        synthetic: the set.
        test: real images.
        tiles: a side of the set's images, where they are mosaics: each tile is a point.
        seed: of the experiment.

    Raises:
        ModelError: the network has no linear layer.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    spec = synthetic.spec
    stream = generator(seed, "embedding", len(synthetic))
    chosen = torch.randperm(len(test), generator=stream)[:_REAL]
    each = tiles**2
    shown = torch.randperm(len(synthetic) * each, generator=stream)[:_SYNTHETIC].sort().values
    images = spec.normalise(synthetic.images[shown // each])
    places = torch.arange(len(shown)) * each + shown % each
    views = mosaic.expand_some(images, tiles, places)
    network.eval()
    both = torch.cat([spec.normalise(test.images[chosen]), views])
    features = features_in_parts(network, both).cpu()
    labels = torch.cat([test.labels[chosen], synthetic.hard_labels[shown // each]])
    search = TSNE(
        perplexity=min(_PERPLEXITY, (len(features) - 1) / 3),
        init="pca",
        max_iter=_ROUNDS,
        random_state=derive_seed(seed, "t-sne") % 2**32,
    )
    # Two threads that wait for each other on a busy machine take ten times as long as one.
    with threadpool_limits(1):
        points = torch.from_numpy(search.fit_transform(features.numpy()))
    return Embedding(points, labels, len(chosen))
