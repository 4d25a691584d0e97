"""What a run warns of."""

import logging

import pytest
import torch
from fakes import CPU, tiny_config, tiny_spec, tiny_tree
from federation import spoiled, start

from fedistill import config_file
from fedistill.shares import Share
from strategies.integrate import Integrate


@pytest.mark.parametrize(
    ("name", "ipc", "said"),
    [
        ("dm", [1, 2], ["show real ones"]),
        ("sre2l", [1, 2], []),
    ],
)
def test_real_images_are_told(
    name: str, ipc: list[int], said: list[str], caplog: pytest.LogCaptureFixture
):
    tree = {**tiny_tree(), "distill": {"name": name, "ipc": ipc}}
    config = config_file.from_dict(tree)
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)  # Flower's logger may not propagate
    try:
        Integrate(config, tiny_spec(), device=CPU, dtype=torch.float32).summary()
    finally:
        logger.removeHandler(caplog.handler)
    found = [record for record in caplog.records if record.levelname == "WARNING"]
    warnings = list(dict.fromkeys(record.getMessage() for record in found))
    assert len(warnings) == len(said)
    assert all(text in warning for text, warning in zip(said, warnings, strict=True))


def test_what_clients_warn_of_is_told_once_by_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def warn(share: Share, attempt: int) -> Share:
        logging.getLogger("fedistill.losses").warning("a term is %s", 0)
        return share

    spoiled(monkeypatch, warn)
    config = tiny_config(teacher={"epochs": 1}, distill={"iterations": 1})
    ours, flowers = logging.getLogger("fedistill"), logging.getLogger("flwr")
    before = list(ours.handlers)
    flowers.addHandler(caplog.handler)
    try:
        start(config)
    finally:
        flowers.removeHandler(caplog.handler)
    assert ours.handlers == before
    told = {r.getMessage() for r in caplog.records if r.name == "flwr" and "term" in r.message}
    assert told == {"client 0, 1: a term is 0"}
