"""Messages of FedAvg, the rival: weights down, trained weights up.

Flower's own strategy names its messages and their records; what is added tells a client who it
is and what it trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedistill import records, states
from fedistill.config import Config
from fedistill.errors import WireError
from fedistill.images import DataSpec

TRAIN = "train"  # a round, as Flower's strategy names it
_METRICS = 1024  # bytes of an update beside its weights
_MOST_SAMPLES = 10**12  # of a client: sums of them, and their shares, stay exact


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What FedAvg asks of a client: to train these weights on its shard."""

    config: Config
    spec: DataSpec
    partition_id: int
    server_round: int
    weights: Mapping[str, Tensor]


def decode_weights(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Read weights that come from this process: an average of what was checked."""
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
    arrays = content.array_records["arrays"]
    form = states.form(config.teacher_model(partition_id), spec)
    records.check_names("the request", arrays, form)
    return TrainRequest(
        config=config,
        spec=spec,
        partition_id=partition_id,
        server_round=records.integer(records.config_record(content, "config"), "server-round"),
        # Of any type: an average of whole numbers is none.
        weights={
            name: records.tensor(name, arrays[name], shape=shape)
            for name, (_, shape) in form.items()
        },
    )


def encode_update(weights: Mapping[str, Tensor], num_examples: int, loss: float) -> RecordDict:
    """Answer `train` as FedAvg expects it: one record of arrays, one of metrics."""
    metrics = MetricRecord({"num-examples": num_examples, "train-loss": loss})
    return RecordDict({"arrays": states.encode(weights), "metrics": metrics})


def largest(own: Mapping[str, Tensor]) -> int:
    """Return the most bytes that an update of such weights and buffers can hold."""
    return states.largest(states.form_of(own)) + _METRICS


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
    form = states.form_of(own)
    records.check_size(content, largest(own))
    metrics = records.metric_record(content, "metrics")
    records.check_names("the update", content, ("arrays", "metrics"))
    records.check_names("the update", metrics, ("num-examples", "train-loss"))
    samples = records.integer(metrics, "num-examples", least=1, most=_MOST_SAMPLES)
    loss = records.number(metrics, "train-loss")
    if "arrays" not in content.array_records:
        raise WireError("'arrays' are no arrays")
    states.decode(content.array_records["arrays"], form, "the update")
    return samples, loss
