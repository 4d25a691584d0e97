"""What a real HttpGrid of Flower fetches of a reply, from a SuperLink that is made up."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import tiny_config
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from strategies import local
from strategies.exchange import Exchange

KIND = "train.distill"
MEGABYTE = 1_000_000


class SuperLink:
    """Answers as Flower's Runtime API does: each message has a reply of so many megabytes."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes
        self.objects: dict[str, bytes] = {}
        self.fetched = 0
        self.replies: dict[str, Message] = {}

    def PushMessages(self, request: Any) -> Any:
        ids = [message.metadata.message_id for message in request.messages_list]
        return PushAppMessagesResponse(message_ids=ids)

    def PushObject(self, request: Any) -> Any:
        raise AssertionError("nothing was asked for")

    def answer(self, message: Message) -> None:
        images = np.random.default_rng(0).integers(
            0, 255, self.megabytes * MEGABYTE, dtype=np.uint8
        )
        content = RecordDict({"set": ArrayRecord({"images": Array(images)})})
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.objects |= {key: it.deflate() for key, it in get_all_nested_objects(reply).items()}
        self.replies[message.metadata.message_id] = reply

    def PullMessages(self, request: Any) -> Any:
        found = [self.replies[key] for key in request.message_ids]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(it)) for it in found],
            message_object_trees=[get_object_tree(it) for it in found],
        )

    def PullObject(self, request: Any) -> Any:
        content = self.objects[request.object_id]
        self.fetched += len(content)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        pass


def ask(superlink: SuperLink, most: int) -> tuple[Exchange, list[int]]:
    grid = HttpGrid(token="x", insecure=True)
    grid._client = superlink  # type: ignore[assignment]
    grid._run = SimpleNamespace(run_id=1)  # type: ignore[assignment]
    exchange = Exchange(tiny_config(partition={"clients": 1}))
    exchange.nodes = {0: 77}
    push = grid.push_messages

    def push_and_answer(messages: Any) -> Any:
        ids = push(messages)
        for message in messages:
            superlink.answer(message)
        return ids

    grid.push_messages = push_and_answer  # type: ignore[method-assign]
    contents = {0: RecordDict({"request": ConfigRecord({"a": 1})})}
    with local.task_identity():
        sizes = [
            len(content.array_records["set"]["images"].data)
            for _, content in exchange.ask(grid, KIND, contents, _as_it_is, {0: most})
        ]
    assert grid._client is superlink
    return exchange, sizes


def _as_it_is(client: int, content: RecordDict) -> RecordDict:
    return content


@pytest.mark.parametrize("megabytes", [1, 12])
def test_a_reply_of_the_expected_size_arrives(megabytes: int):
    exchange, sizes = ask(SuperLink(megabytes), megabytes * MEGABYTE + 10_000)
    assert exchange.failures == {}
    assert sizes[0] >= megabytes * MEGABYTE


def test_of_a_reply_that_is_far_too_large_little_is_fetched():
    superlink = SuperLink(60)
    exchange, sizes = ask(superlink, MEGABYTE)
    assert sizes == []
    assert "its reply was refused: it holds more than 1000000 bytes" in exchange.failures[0]
    assert superlink.fetched < 30 * MEGABYTE  # the limit, and pieces that were on their way
