"""A client's share of the synthetic set, and the union of all shares (DB stage 3, "integrate")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedistill.images import DataSpec
from fedistill.sets import SyntheticSet

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one client delivers.

    Attributes:
        partition_id: of the client.
        images: uint8 [M, C, H, W], class by class.
        counts: images of each class, [num_classes]; they sum to M. Where sets of several sizes
            have images of their own, one row after the other, [rows * num_classes].
        teachers: weights and buffers of the client's teachers; empty if they stay at home.
        teacher_curve: (epoch, mean training loss) of the first teacher.
        recover_curve: (iteration, loss) of the first batch of images.
        curves: others of the method's, by name: (iteration, value).
        seconds: by stage: squeeze, recover; of what came from the artefact store, those that it
            took to make.
        from_store: stages of which something came from there.
        warnings: what the client's log warned of, for the server's.
    """

    partition_id: int
    images: Tensor
    counts: tuple[int, ...]
    teachers: tuple[Mapping[str, Tensor], ...] = ()
    teacher_curve: Curve = ()
    recover_curve: Curve = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    seconds: Mapping[str, float]
    from_store: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def entry(self, number: int) -> Tensor:
        """Return the images that one entry of `counts` counts, in the order they were made."""
        start = sum(self.counts[:number])
        return self.images[start : start + self.counts[number]]

    def extended(self, more: "Share") -> "Share":
        """Append the images that the same client made later, class by class.

        A teacher that it has found in its store is the one of the first share: told of once.
        """
        if "squeeze" in more.from_store:
            seconds = {**more.seconds, "squeeze": 0.0}
            kept = tuple(stage for stage in more.from_store if stage != "squeeze")
            more = replace(more, seconds=seconds, from_store=kept)
        parts = [
            share.entry(number) for number in range(len(self.counts)) for share in (self, more)
        ]
        return replace(
            self,
            images=torch.cat(parts),
            counts=tuple(a + b for a, b in zip(self.counts, more.counts, strict=True)),
            seconds={key: self.seconds[key] + more.seconds.get(key, 0.0) for key in self.seconds},
            from_store=tuple(dict.fromkeys([*self.from_store, *more.from_store])),
            warnings=tuple(dict.fromkeys([*self.warnings, *more.warnings])),
        )


def integrate(
    shares: Sequence[Share], plan: Mapping[int, Sequence[int]], spec: DataSpec, row: int = 0
) -> SyntheticSet:
    """Unite the shares into one set: for every class, the images that the plan asks of each client.

    Args:
        shares: in any order; the result does not depend on it.
        plan: for each partition id, how many images of each class enter the set. A client may
            have made more: the first ones count, so that small sets are part of larger ones.
        spec: of the data set.
        row: of the shares' counts that the set is made of.

    Returns:
        A set ordered by class, within a class by client.
    """
    images, labels, clients = [], [], []
    for label in range(spec.num_classes):
        for share in sorted(shares, key=lambda share: share.partition_id):
            count = plan.get(share.partition_id, [0] * spec.num_classes)[label]
            number = row * spec.num_classes + label
            assert count <= share.counts[number], (share.partition_id, label, count)
            images.append(share.entry(number)[:count])
            labels += [label] * count
            clients += [share.partition_id] * count
    return SyntheticSet(
        spec=spec,
        images=torch.cat(images),
        hard_labels=torch.tensor(labels),
        clients=torch.tensor(clients),
    )
