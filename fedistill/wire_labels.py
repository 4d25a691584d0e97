"""What travels where teachers stay at home: the set and whose views they are, and logits.

See `wire.py` for the other messages.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fedistill import records
from fedistill.config import Config
from fedistill.crops import ViewOptions
from fedistill.errors import WireError
from fedistill.images import DataSpec

LABEL = "query.label"
_OVERHEAD = 1024  # bytes of an answer beside its logits


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """What the server asks of a client whose teacher has stayed at home.

    Attributes:
        images: of the set, uint8 [M, C, H, W].
        seed: replays the views together with `options`.
        mine: which views of which images this client is to label, bool [views, M].
    """

    config: Config
    spec: DataSpec
    partition_id: int
    images: Tensor
    seed: int
    options: ViewOptions
    mine: Tensor


def encode_label_request(request: LabelRequest) -> RecordDict:
    """Ask a client to label its views of a set.

    Which views are its own travels as one bit each: the draw itself could be replayed, but with
    `teacher_choice: coverage` only from what every other client holds.
    """
    content = records.request(request.config, request.spec, request.partition_id)
    record = content.config_records["request"]
    record["seed"] = request.seed
    record["options-json"] = json.dumps(request.options.as_dict())
    record["views"] = len(request.mine)
    arrays = {"images": request.images.numpy(), "mine": np.packbits(request.mine.numpy())}
    content["set"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return content


def decode_label_request(content: RecordDict) -> LabelRequest:
    """Read what `encode_label_request` wrote.

    Raises:
        WireError: it does not follow the contract.
    """
    config, spec, partition_id = records.read_request(content)
    record = records.config_record(content, "request")
    views = records.integer(record, "views")
    images = records.array(content, "set", "images", torch.uint8)
    if images.ndim != 4 or tuple(images.shape[1:]) != (spec.channels, spec.size, spec.size):
        raise WireError(f"images are {tuple(images.shape)}; expected [M, C, H, W] of {spec.name}")
    bits, count = records.array(content, "set", "mine", torch.uint8), views * len(images)
    if views < 1 or bits.shape != (-(-count // 8),):
        raise WireError(f"'mine' is {tuple(bits.shape)} for {views} views of {len(images)} images")
    try:
        options = ViewOptions.from_dict(json.loads(str(record["options-json"])))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WireError(f"the request holds no options that can be read: {error}") from error
    mine = torch.from_numpy(np.unpackbits(bits.numpy(), count=count)).bool()
    return LabelRequest(
        config=config,
        spec=spec,
        partition_id=partition_id,
        images=images,
        seed=records.integer(record, "seed"),
        options=options,
        mine=mine.view(views, len(images)),
    )


def encode_answers(partition_id: int, logits: Tensor) -> RecordDict:
    """Answer `query.label` with logits, float16 [P, num_classes]."""
    return RecordDict(
        {
            "labels": ArrayRecord({"logits": Array(logits.numpy())}),
            "metrics": MetricRecord({"partition-id": partition_id}),
        }
    )


def largest(request: LabelRequest) -> int:
    """Return the most bytes that the answer to a request can hold."""
    return 2 * int(request.mine.sum()) * request.spec.num_classes + _OVERHEAD


def decode_answers(content: RecordDict, request: LabelRequest) -> Tensor:
    """Read a client's logits and check that they are what was asked for.

    Raises:
        WireError: they are not.
    """
    records.check_size(content, largest(request))
    metrics = records.metric_record(content, "metrics")
    shape = (int(request.mine.sum()), request.spec.num_classes)
    logits = records.array(content, "labels", "logits", torch.float16, shape)
    records.check_names("the answer", content, ("metrics", "labels"))
    records.check_names("the answer", metrics, ("partition-id",))
    records.check_names("the answer", content.array_records["labels"], ("logits",))
    partition_id = records.integer(metrics, "partition-id")
    if partition_id != request.partition_id:
        raise WireError(f"the labels are of partition {partition_id}, not {request.partition_id}")
    if not bool(logits.isfinite().all()):
        raise WireError("the logits hold values that are not finite")
    return logits
