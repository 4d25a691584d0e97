"""The bytes of every row: what a federation that has this row alone would have sent.

All are sizes of messages as Flower serialises them, up and down over all clients; what the run
itself really sent stays in result.json's `bytes`, where no rival enters.

    the distilled set   for each client its share: as many uint8 images as this set has of it, hard
                        counts and notes, and its teachers
    hard_label          the same without teachers
    random, herding,    for each client a share of as many real images, and its teachers, which
    k_center            label them
    ensembles,          for each client its teachers: a share without images
    weight_average
    full_data           for each client one message with all its images as uint8 and its labels, as
                        small integers
    fedavg_R            what really went to and fro in the messages `train` up to round R

To a share belong the client's description up, and down the requests as the run sent them
(`query.describe`, `train.distill`); where a client has failed, asking the others again counts too.
To full_data belongs the request `query.describe`. Soft labels are made on the server and sent
to nobody; where teachers stay at home, the messages `query.label` belong to every set with soft
labels, by its part of the images of all sets.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedistill import wire, wire_labels
from fedistill.config_students import CORESETS, ENSEMBLES
from fedistill.images import ImageSet
from fedistill.shares import Share
from strategies.base import FedDistill

Bytes = dict[str, int]  # up and down

_TEACHERS_ALONE = (*ENSEMBLES, "weight_average")


def of_set(strategy: FedDistill, ipc: int) -> Bytes:
    """Count the distilled set of an IPC."""
    return _with_labels(strategy, ipc, _shares(strategy, _images(strategy, ipc, strategy.shares)))


def of_row(
    strategy: FedDistill, ipc: int, name: str, train: ImageSet, shards: Sequence[Tensor]
) -> Bytes:
    """Count a row beside it; FedAvg counts its own bytes.

    Args:
        strategy: after its start.
        ipc: of the set that the row stands beside.
        name: of the row.
        train: the training split.
        shards: indices into it of each partition id.
    """
    plain = {n: replace(it, recover_curve=(), curves={}) for n, it in strategy.shares.items()}
    if name == "hard_label":
        shares = {n: replace(it, teachers=()) for n, it in strategy.shares.items()}
        return _shares(strategy, _images(strategy, ipc, shares))
    if name in CORESETS:
        return _with_labels(strategy, ipc, _shares(strategy, _images(strategy, ipc, plain)))
    if name in _TEACHERS_ALONE:
        none = {n: replace(it, images=it.images[:0]) for n, it in plain.items()}
        return _shares(strategy, none)
    assert name == "full_data", name
    up = sum(_real_data(train.select(index), strategy.spec.num_classes) for index in shards)
    return {"up": up, "down": strategy.exchange.traffic.sums(wire.DESCRIBE)["down"]}


def _images(strategy: FedDistill, ipc: int, shares: dict[int, Share]) -> dict[int, Share]:
    """Return the shares with as many images as the set of an IPC has of each client."""
    plan = strategy.plans[ipc]
    spec = strategy.spec
    found = {}
    for client, share in shares.items():
        count = sum(plan.get(client, ()))
        images = torch.zeros(count, spec.channels, spec.size, spec.size, dtype=torch.uint8)
        found[client] = replace(share, images=images)
    return found


def _shares(strategy: FedDistill, shares: dict[int, Share]) -> Bytes:
    traffic = strategy.exchange.traffic
    up = traffic.sums(wire.DESCRIBE)["up"]
    up += sum(wire.size(wire.encode_share(share)) for share in shares.values())
    return {"up": up, "down": traffic.sums(wire.DESCRIBE, wire.DISTILL)["down"]}


def _with_labels(strategy: FedDistill, ipc: int, found: Bytes) -> Bytes:
    """Add what labelling a set of this IPC at the clients took, if it was done there."""
    labels = strategy.exchange.traffic.sums(wire_labels.LABEL)
    part = ipc / sum(strategy.plans)
    return {way: count + round(part * labels[way]) for way, count in found.items()}


def _real_data(shard: ImageSet, num_classes: int) -> int:
    """Count the message that a client would send its shard in."""
    small = torch.uint8 if num_classes <= 256 else torch.int32
    arrays = {"images": shard.images, "labels": shard.labels.to(small)}
    record = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in arrays.items()})
    return wire.size(RecordDict({"shard": record}))
