"""Messages of FedAvg, the rival: weights down, trained weights up.

Flower's own strategy names its messages and their records; what is added tells a client who it
is and what it trains.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedistill import records
from fedistill.config import Config
from fedistill.errors import WireError
from fedistill.images import DataSpec

TRAIN = "train"  # a round, as Flower's strategy names it


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What FedAvg asks of a client: to train these weights on its shard."""

    config: Config
    spec: DataSpec
    partition_id: int
    server_round: int
    weights: Mapping[str, Tensor]


def encode_weights(weights: Mapping[str, Tensor]) -> ArrayRecord:
    """Turn weights and buffers into the record that Flower's strategies average."""
    return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in weights.items()})


def decode_weights(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Read what `encode_weights` wrote."""
    return {name: records.tensor(name, array) for name, array in arrays.items()}


def encode_train_request(
    config: Config, spec: DataSpec, partition_id: int, content: RecordDict
) -> RecordDict:
    """Add to what FedAvg sends to everyone what this client must know.

    Args:
        config: of the experiment.
        spec: of the data set.
        partition_id: of the client.
        content: of FedAvg's message: `arrays` with the weights, `config` with the round.
    """
    return RecordDict({**records.request(config, spec, partition_id), **content})


def decode_train_request(content: RecordDict) -> TrainRequest:
    """Read what `encode_train_request` wrote.

    Raises:
        WireError: it does not follow the contract.
    """
    config, spec, partition_id = records.read_request(content)
    if "arrays" not in content.array_records:
        raise WireError("the request holds no weights")
    return TrainRequest(
        config=config,
        spec=spec,
        partition_id=partition_id,
        server_round=records.integer(records.config_record(content, "config"), "server-round"),
        weights=decode_weights(content.array_records["arrays"]),
    )


def encode_update(weights: Mapping[str, Tensor], num_examples: int, loss: float) -> RecordDict:
    """Answer `train` as FedAvg expects it: one record of arrays, one of metrics."""
    metrics = MetricRecord({"num-examples": num_examples, "train-loss": loss})
    return RecordDict({"arrays": encode_weights(weights), "metrics": metrics})


def check_update(content: RecordDict, own: Mapping[str, Tensor]) -> tuple[int, float]:
    """Check what FedAvg is going to average.

    Args:
        content: of a reply.
        own: weights and buffers of the common network, for their names, types and shapes.

    Returns:
        The samples behind it, and the client's training loss.

    Raises:
        WireError: it is not a state of this network, or has no weight in the average.
    """
    metrics = records.metric_record(content, "metrics")
    if set(content) != {"arrays", "metrics"} or set(metrics) != {"num-examples", "train-loss"}:
        raise WireError(f"the update holds {sorted(content)} with {sorted(metrics)}")
    samples, loss = records.integer(metrics, "num-examples"), records.number(metrics, "train-loss")
    if samples < 1:
        raise WireError(f"'num-examples' is {samples}; expected 1 or more")
    if not math.isfinite(loss):
        raise WireError(f"'train-loss' is {loss}; expected a finite number")
    if not isinstance(content["arrays"], ArrayRecord):
        raise WireError("'arrays' are no arrays")
    found = decode_weights(content["arrays"])
    if found.keys() != own.keys():
        odd = sorted(found.keys() ^ own.keys())
        raise WireError(f"the weights are of another network: {odd[:3]} on one side alone")
    for name, tensor in found.items():
        if (tensor.dtype, tensor.shape) != (own[name].dtype, own[name].shape):
            raise WireError(
                f"'{name}' is {tensor.dtype} {tuple(tensor.shape)}; expected "
                f"{own[name].dtype} {tuple(own[name].shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise WireError(f"'{name}' holds values that are not finite")
    return samples, loss
