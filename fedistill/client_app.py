"""The ClientApp: it describes its shard, makes its share of the set, and may label at home.

It also takes part in FedAvg, the rival.

Squeeze and distil share one message, since in a deployment every message starts a new process.
A teacher that stays at home waits in the artefact store for the message that asks for labels.
A handler answers on every path: one that does not would leave the server waiting, or wedge a
SuperNode for good. So mistakes travel back as an error (`error_replies.py`).
"""

import platform
from collections.abc import Callable
from dataclasses import replace
from functools import wraps

import flwr
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedistill import config_file, data, warned, wire, wire_evaluate, wire_fedavg, wire_labels
from fedistill.answers import Sheet
from fedistill.client import examine, label, make_share, train_from
from fedistill.config import Config
from fedistill.device import Device
from fedistill.error_replies import reason_of
from fedistill.errors import RunError
from fedistill.planning import distiller_of, dropped
from fedistill.progress import Progress
from fedistill.store import VARIABLE, Store

app = ClientApp()

FAILED = 1000  # our error code: the handler raised

Handler = Callable[[Message, Context], Message]


def _answering(handler: Handler) -> Handler:
    """Turn an exception into an error reply."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            return Message(Error(FAILED, reason_of(error)), reply_to=message)
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # actors of a simulation live on and share the GPU

    return answer


@app.query("describe")
@_answering
def describe(message: Message, context: Context) -> Message:
    """Say what this client holds."""
    request = wire.decode_describe_request(message.content)
    config, spec, asked = request.config, request.spec, request.partition_id
    device = Device.read(context.node_config)
    _require_consent(device, config)
    found = device.images(config, spec, asked)
    own = -1 if device.partition_id is None else device.partition_id
    description = wire.Description(
        own if asked < 0 else asked,
        found.shard.histogram(spec.num_classes),
        machine(),
        name=device.name,
        model=config_file.dump_model(device.model) if device.model else "",
        unknown_classes=found.unknown_classes,
        pixels=data.pixel_levels(found.shard.images) if request.pixels else (),
        held_out=len(found.held_out),
    )
    return Message(wire.encode_description(description), reply_to=message)


@app.train("distill")
@_answering
def distill(message: Message, context: Context) -> Message:
    """Make this client's share of the set."""
    request = wire.decode_distill_request(message.content)
    device = Device.read(context.node_config)
    config, client = device.own(request.config), request.partition_id
    _require_consent(device, config)
    device.require_model(config, client)
    if device.trusted and client in dropped(config):
        raise RunError("it drops out, as federation.dropout asks")
    store, at_home = device.artefacts(), config.relabel.at == "clients"
    if at_home:
        _require_store(store)
    shard = device.images(config, request.spec, client).shard
    # The log of a client is not where the user looks: what it warns of travels with the share.
    with warned.collected(alone=True) as warnings:
        share = make_share(
            config,
            request.spec,
            shard,
            request.counts,
            partition_id=client,
            attempt=request.attempt,
            made=request.made,
            teacher_states=request.teachers,
            report=Progress(f"client {client}").report,
            store=store,
            device=device.place(),
        )
    if not device.trusted:
        warnings = [device.without_folders(text) for text in warnings]
    share = replace(share, warnings=tuple(warnings))
    if at_home:
        share = replace(share, teachers=())
    return Message(wire.encode_share(share), reply_to=message)


@app.query("label")
@_answering
def answer_label(message: Message, context: Context) -> Message:
    """Label this client's views of the integrated set."""
    request = wire_labels.decode_label_request(message.content)
    device = Device.read(context.node_config)
    config, client = device.own(request.config), request.partition_id
    logits = label(
        config,
        request.spec,
        device.images(config, request.spec, client).shard,
        Sheet(request.images, len(request.mine), request.seed, request.options),
        request.mine,
        partition_id=client,
        report=Progress(f"client {client}").report,
        store=device.artefacts(),
        device=device.place(),
    )
    return Message(wire_labels.encode_answers(client, logits), reply_to=message)


@app.query("evaluate")
@_answering
def evaluate(message: Message, context: Context) -> Message:
    """Test students on the images that this client has kept for that."""
    request = wire_evaluate.decode_evaluate_request(message.content)
    device = Device.read(context.node_config)
    config, client = device.own(request.config), request.partition_id
    held_out = device.images(config, request.spec, client).held_out
    counts = examine(
        config, request.spec, held_out, request.model, request.students, device=device.place()
    )
    return Message(wire_evaluate.encode_counts(client, counts), reply_to=message)


@app.train()
@_answering
def train(message: Message, context: Context) -> Message:
    """Do this client's part of a round of FedAvg: a rival, no part of the method."""
    request = wire_fedavg.decode_train_request(message.content)
    device = Device.read(context.node_config)
    config, client = device.own(request.config), request.partition_id
    shard = device.images(config, request.spec, client).shard
    weights, loss = train_from(
        config,
        request.spec,
        shard,
        request.weights,
        partition_id=client,
        server_round=request.server_round,
        report=Progress(f"client {client}").report,
        store=device.artefacts(),
        device=device.place(),
    )
    return Message(wire_fedavg.encode_update(weights, len(shard), loss), reply_to=message)


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


def _require_store(store: Store) -> None:
    """Refuse to train a teacher that could not wait for the message that asks for labels.

    Raises:
        RunError: there is no store, or it cannot be written.
    """
    why = f"{VARIABLE} is not set" if store.folder is None else ""
    try:
        store.probe()
    except OSError as error:
        why = f"the store cannot be written ({error.strerror})"
    if why:
        raise RunError(
            f"relabel.at is clients, and {why}: the teacher would be lost before labels are asked "
            f"for; set {VARIABLE}, or store in the node config, to a folder that can be written, "
            "or set relabel.at: server"
        )


def _require_consent(device: Device, config: Config) -> None:
    """Refuse what would send real images where they are not to leave a device."""
    if distiller_of(config).uses_real_images:
        device.require_consent(config, f"distill.name {config.distill.name}")
