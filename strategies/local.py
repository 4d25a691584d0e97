"""Run the ServerApp and the ClientApp in this process: same code, no SuperLink, no Ray.

Clients answer one after the other. Everything that is not public API of Flower stands here.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN_ID = 1
_SERVER_ID = 1
_CLIENT_RAISED = 2  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class LocalGrid(Grid):
    """A Grid whose nodes are calls of the ClientApp.

    Args:
        client_app: the app of every node.
        num_nodes: how many there are.
        run_config: what every node's context holds.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, str]
    ) -> None:
        self._client_app = client_app
        self._contexts = {
            node: Context(
                run_id=_RUN_ID,
                node_id=node,
                node_config={"partition-id": index, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for index, node in enumerate(range(100, 100 + num_nodes))
        }
        self._sent: dict[str, Message] = {}
        self._ids = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """A run with nothing but its id."""
        return Run.create_empty(_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as `Message(...)` does."""
        return Message(
            content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; each is answered when its reply is pulled. Return their ids."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
            ids.append(message.metadata.message_id)
            self._sent[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let messages be answered, and return the replies; each can be had once."""
        return [self._answer(self._sent.pop(key)) for key in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as a SuperNode does
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(_CLIENT_RAISED, reason), reply_to=message)


@contextmanager
def task_identity() -> Iterator[None]:
    """Let `Message(...)` be called outside a run of Flower."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        setattr(TaskIdentity, name, _SERVER_ID)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def run(
    server_app: ServerApp, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, str]
) -> None:
    """Run both apps to the end; an exception of the ServerApp reaches the caller."""
    context = Context(
        run_id=_RUN_ID,
        node_id=_SERVER_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    with task_identity():
        server_app(LocalGrid(client_app, num_nodes, run_config), context)
