"""A SuperLink of pieces: what a device offers, and how much of it is fetched."""

import hashlib
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fakes import tiny_config
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_body
from flwr.superlink.grid.http_grid import HttpGrid

from fedistill import records
from strategies import local
from strategies.exchange import Exchange
from strategies.kept import KeptReplies

KIND = "train.distill"
MEGABYTE = 1_000_000


class Objects(dict[str, bytes]):
    """The objects of one reply as they lie on a SuperLink, by the hash of their content."""

    def add(self, kind: str, body: bytes | str, *parts: str) -> str:
        """Add an object that names its parts as it likes."""
        body = body.encode() if isinstance(body, str) else body
        return self.add_whole(f"{kind} {','.join(parts)} {len(body)}".encode() + b"\x00" + body)

    def add_whole(self, content: bytes) -> str:
        key = hashlib.sha256(content).hexdigest()
        self[key] = content
        return key

    def piece(self, size: int = MEGABYTE) -> str:
        return self.add("ArrayChunk", bytes(size))

    def array(self, *parts: str, times: int = 1, **said: Any) -> str:
        unlike = {"dtype": "uint8", "shape": [1], "stype": "numpy.ndarray"}
        body = json.dumps({**unlike, "arraychunk_ids": [*range(len(parts))] * times, **said})
        return self.add("Array", body, *parts)

    def record(self, *arrays: str) -> str:
        names = dict(zip(("images", *map(str, range(len(arrays)))), arrays, strict=False))
        return self.add("ArrayRecord", json.dumps(names), *dict.fromkeys(arrays))

    def content(self, *arrays: str) -> str:
        record = self.record(*arrays)
        return self.add("RecordDict", json.dumps({"set": record}), record)

    def message(self, reply_to: Message, *content: str) -> str:
        body = get_object_body(Message(RecordDict(), reply_to=reply_to).deflate(), Message)
        return self.add("Message", body, *content)


# Makes a device's reply to a message: returns the key of its outermost object.
Reply = Callable[[Objects, Message], str]


def honest(*arrays: np.ndarray[Any, Any]) -> Reply:
    def reply(objects: Objects, message: Message) -> str:
        named = {name: Array(it) for name, it in zip(("images", "more"), arrays, strict=False)}
        made = Message(RecordDict({"set": ArrayRecord(named)}), reply_to=message)
        objects |= {key: it.deflate() for key, it in get_all_nested_objects(made).items()}
        return made.object_id

    return reply


def noise(megabytes: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 255, megabytes * MEGABYTE, dtype=np.uint8)


class SuperLink:
    """Answers as Flower's Runtime API does: what each node has replied, by node id."""

    announced: tuple[str, ...] = ()  # parts of every first reply that are not there

    def __init__(self, replies: Mapping[int, Reply]) -> None:
        self._replies = replies
        self._answered: dict[str, Any] = {}
        self.objects = Objects()
        self.fetched = 0

    def PushMessages(self, request: Any) -> Any:
        ids = [message.metadata.message_id for message in request.messages_list]
        return PushAppMessagesResponse(message_ids=ids)

    def PushObject(self, request: Any) -> Any:
        raise AssertionError("nothing was asked for")

    def answer(self, message: Message) -> None:
        own = Objects()
        key = self._replies[message.metadata.dst_node_id](own, message)
        self.objects.update(own)
        proto = message_to_proto(Message(RecordDict(), reply_to=message))
        proto.metadata.message_id = key
        others = [other for other in own if other != key]
        others += self.announced if message.metadata.dst_node_id == 77 else ()
        parts = [ObjectTree(object_id=other) for other in others]
        tree = ObjectTree(object_id=key, children=parts)
        self._answered[message.metadata.message_id] = proto, tree

    def PullMessages(self, request: Any) -> Any:
        found = [self._answered[key] for key in request.message_ids]
        return PullAppMessagesResponse(
            messages_list=[proto for proto, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request: Any) -> Any:
        content = self.objects[request.object_id]
        self.fetched += len(content)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        pass


def ask(
    superlink: SuperLink,
    most: int,
    kept: KeptReplies | None = None,
    devices: int = 1,
    deadline_s: float = 60.0,
) -> tuple[Exchange, dict[int, int]]:
    """Ask devices for images; return how many bytes of them each has sent that was read."""
    grid = HttpGrid(token="x", insecure=True)
    grid._client = superlink  # type: ignore[assignment]
    grid._run = SimpleNamespace(run_id=1)  # type: ignore[assignment]
    config = tiny_config(partition={"clients": devices}, federation={"deadline_s": deadline_s})
    exchange = Exchange(config, kept)
    exchange.simulated = False
    exchange.nodes = {client: 77 + client for client in range(devices)}
    push = grid.push_messages

    def push_and_answer(messages: Any) -> Any:
        ids = push(messages)
        for message in messages:
            superlink.answer(message)
        return ids

    grid.push_messages = push_and_answer  # type: ignore[method-assign]
    contents = {n: RecordDict({"request": ConfigRecord({"a": n})}) for n in range(devices)}
    try:
        with local.task_identity():
            answers = exchange.ask(
                grid, KIND, contents, _images, dict.fromkeys(range(devices), most)
            )
            sizes = dict(answers)
    finally:
        assert grid._client is superlink
    return exchange, sizes


def _images(client: int, content: RecordDict) -> int:
    return records.array(content, "set", "images", torch.uint8).numel()
