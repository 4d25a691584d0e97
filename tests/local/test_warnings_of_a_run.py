"""What a run says before it starts, about sets that are less than they seem."""

import logging

import pytest
import torch
from fakes import CPU, tiny_spec, tiny_tree

from fedistill import config_file
from strategies.integrate import Integrate


@pytest.mark.parametrize(
    ("name", "ipc", "said"),
    [
        ("dm", [1, 2], ["show real ones", "IPC [1] are cut out of the one for IPC 2"]),
        ("dm", [2], ["show real ones"]),
        ("gvbsm", [1, 2, 5], ["IPC [1, 2] are cut out of the one for IPC 5"]),
        ("sre2l", [1, 2], []),
    ],
)
def test_real_images_and_sets_cut_out_of_others_are_told(
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
