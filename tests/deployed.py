"""A deployment in this process: devices with node configs of their own, and a server to start."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedistill import client_app, config_file, deployment, results
from fedistill.config import Config
from strategies import experiment, local, server_app


class Devices(local.LocalGrid):
    """Nodes with node configs of their own; counts what they are asked."""

    def __init__(self, node_configs: Sequence[Mapping[str, Any]], first_node: int = 500) -> None:
        super().__init__(client_app.app, 0, {})
        self.asked = Counter[str]()
        # Backwards: the number of a node says nothing about its partition id.
        for number, node_config in enumerate(reversed(node_configs)):
            node = first_node + number
            self._contexts[node] = Context(
                run_id=1,
                node_id=node,
                node_config=dict(node_config),
                state=RecordDict(),
                run_config={},
            )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked.update(message.metadata.message_type for message in messages)
        return super().push_messages(messages)


def named(folders: Sequence[Path]) -> list[dict[str, Any]]:
    return [{"data": str(folder), "name": f"site-{n}"} for n, folder in enumerate(folders)]


def deploy(config: Config, grid: local.LocalGrid, name: str = "trial") -> dict[str, Any]:
    """Let a ServerApp live once."""
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={
            "config-yaml": config_file.dump(config),
            "deployment": name,
            "tracking-uri": "",
            "source-json": "{}",
        },
    )
    with local.task_identity():
        server_app.app(grid, context)
    return results.read_json(deployment.folder_of(name) / results.RESULT)


def deploy_and_die(monkeypatch: pytest.MonkeyPatch, config: Config, grid: Devices) -> None:
    """Run on devices, up to the death of the server when it has all replies."""

    def die(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(experiment.Experiment, "evaluate", die)
        with pytest.raises(RuntimeError, match="power cut"):
            deploy(config, grid)
