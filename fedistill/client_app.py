"""The ClientApp: it describes its shard, makes its share of the set, and may label at home.

It also takes part in FedAvg, the rival.


Squeeze and distil share one message, since in a deployment every message starts a new process.
A teacher that stays at home waits in the artefact store for the message that asks for labels.
A handler answers on every path: one that does not would leave the server waiting, or wedge a
SuperNode for good. So mistakes travel back as an error with their traceback.
"""

import logging
import platform
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, wraps

import flwr
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedistill import data, partition, wire, wire_fedavg, wire_labels
from fedistill.answers import Sheet
from fedistill.client import label, make_share, train_from
from fedistill.config import DataConfig, PartitionConfig
from fedistill.errors import RunError
from fedistill.images import DataSpec, ImageSet
from fedistill.progress import Progress
from fedistill.store import VARIABLE, Store

app = ClientApp()

FAILED = 1000  # our error code: the handler raised; the reason is its traceback
_LONGEST_REASON = 4000

Handler = Callable[[Message, Context], Message]


def _answering(handler: Handler) -> Handler:
    """Turn an exception into an error reply."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception:
            reason = traceback.format_exc()[-_LONGEST_REASON:]
            return Message(Error(FAILED, reason), reply_to=message)
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # actors of a simulation live on and share the GPU

    return answer


@app.query("describe")
@_answering
def describe(message: Message, context: Context) -> Message:
    """Say what this client holds."""
    request = wire.decode_describe_request(message.content)
    config, spec, partition_id = request.config, request.spec, request.partition_id
    shard = _shard(config.data, config.partition, config.seed, partition_id, spec)
    description = wire.Description(partition_id, shard.histogram(spec.num_classes), machine())
    return Message(wire.encode_description(description), reply_to=message)


@app.train("distill")
@_answering
def distill(message: Message, context: Context) -> Message:
    """Make this client's share of the set."""
    request = wire.decode_distill_request(message.content)
    config = request.config
    at_home = config.relabel.at == "clients"
    if at_home and Store.from_environment().folder is None:
        raise RunError(
            f"relabel.at is clients, and {VARIABLE} is not set: the teacher would be lost before "
            "labels are asked for; set it to a folder, or set relabel.at: server"
        )
    shard = _shard(config.data, config.partition, config.seed, request.partition_id, request.spec)
    with _collected_warnings() as warnings:
        share = make_share(
            config,
            request.spec,
            shard,
            request.counts,
            partition_id=request.partition_id,
            attempt=request.attempt,
            made=request.made,
            teacher_states=request.teachers,
            report=Progress(f"client {request.partition_id}").report,
        )
    share = replace(share, warnings=tuple(dict.fromkeys(warnings)))
    if at_home:
        share = replace(share, teachers=())
    return Message(wire.encode_share(share), reply_to=message)


@app.query("label")
@_answering
def answer_label(message: Message, context: Context) -> Message:
    """Label this client's views of the integrated set."""
    request = wire_labels.decode_label_request(message.content)
    config = request.config
    shard = _shard(config.data, config.partition, config.seed, request.partition_id, request.spec)
    logits = label(
        config,
        request.spec,
        shard,
        Sheet(request.images, len(request.mine), request.seed, request.options),
        request.mine,
        partition_id=request.partition_id,
        report=Progress(f"client {request.partition_id}").report,
    )
    return Message(wire_labels.encode_answers(request.partition_id, logits), reply_to=message)


@app.train()
@_answering
def train(message: Message, context: Context) -> Message:
    """Do this client's part of a round of FedAvg: a rival, no part of the method."""
    request = wire_fedavg.decode_train_request(message.content)
    config, client = request.config, request.partition_id
    shard = _shard(config.data, config.partition, config.seed, client, request.spec)
    weights, loss = train_from(
        config,
        request.spec,
        shard,
        request.weights,
        partition_id=client,
        server_round=request.server_round,
        report=Progress(f"client {client}").report,
    )
    return Message(wire_fedavg.encode_update(weights, len(shard), loss), reply_to=message)


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect what our modules warn of: a client's own log is not where the user looks."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("fedistill")
    before, logger.handlers = logger.handlers, [handler]
    try:
        yield found
    finally:
        logger.handlers = before


def machine() -> dict[str, str]:
    """Return versions and hardware of this process, for the record."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flwr": flwr.__version__,
        "cpu": platform.processor() or platform.machine(),
        "gpu": gpu,
    }


def _shard(
    config: DataConfig, split: PartitionConfig, seed: int, partition_id: int, spec: DataSpec
) -> ImageSet:
    # The whitening comes with the request: a client could not fit it to the others' images.
    loaded = _loaded(replace(config, zca=False), seed)
    assert loaded.spec.class_names == spec.class_names
    parts = _partitioned(replace(config, zca=False), split, seed)
    return loaded.train.select(parts.indices[partition_id])


# An actor of a simulation serves many messages, and in a sweep many federations.
@lru_cache(maxsize=1)
def _loaded(config: DataConfig, seed: int) -> data.Data:
    return data.load(config, seed)


@lru_cache(maxsize=8)
def _partitioned(config: DataConfig, split: PartitionConfig, seed: int) -> partition.Partition:
    loaded = _loaded(config, seed)
    return partition.split(loaded.train.labels, loaded.spec.num_classes, split, seed)
