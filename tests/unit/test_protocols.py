"""Protocols: the numbers of their sources, and the user's word against theirs."""

import sys
from typing import Any, get_args

import pytest

from fedistill import cli, config_file, protocols
from fedistill.config import Config, Protocol

ADAMW = {"optimizer": "adamw", "lr": 1e-3}
KL_20 = {"loss": "kl", "temperature": 20.0, "ce_weight": 0.0}
CUTMIX = {"mix": "cutmix", "mix_alpha": 1.0, "mix_probability": 1.0}
PLAIN_BOX = {"shift": 0, "tiles": 1, "tile_share": 0.0}
BATCHES = {1: 10, 10: 50, 50: 100}

# Copied from the papers and the authors' code, for CIFAR-10; not from protocols.py.
STUDENT = {
    "sre2l": {**ADAMW, "epochs": 400, "batch_size": 128, "weight_decay": 0.01, "schedule": "cosine",
              "loss": "kl", "temperature": 30.0, "ce_weight": 0.0, "ema": 0.0},
    "rded": {**ADAMW, **KL_20, "epochs": 300, "batch_size": BATCHES, "weight_decay": 0.01,
             "schedule": "half_cosine", "ema": 0.0},
    "gvbsm": {**ADAMW, "epochs": 1000, "batch_size": 100, "weight_decay": 0.0, "schedule": "cosine",
              "loss": "mse", "temperature": None, "ce_weight": 0.15, "ema": 0.0},
    "edc": {**ADAMW, "epochs": 1000, "batch_size": {1: 10, 10: 25}, "weight_decay": 0.01,
            "schedule": "multistep", "loss": "mse", "temperature": None, "ce_weight": 0.025,
            "ema": 0.99, "zeta": 2.0},
    "lic": {**ADAMW, **KL_20, "epochs": 4000, "batch_size": BATCHES, "weight_decay": 1e-4,
            "schedule": "two_steps", "ema": 0.0},
    "dream": {"optimizer": "sgd", "lr": 0.01, "epochs": 4 * 1000, "batch_size": 64,
              "weight_decay": 5e-4, "schedule": "two_steps", "ema": 0.0},
}  # fmt: skip
VIEWS = {
    "sre2l": {"views": 400, "scale": (1.0, 1.0), "shift": 4, "tiles": 1, "tile_share": 0.0,
              "mix": "mixup", "mix_alpha": 0.8, "mix_probability": 1.0},
    "rded": {"views": 300, "scale": (1.0, 1.0), **PLAIN_BOX, **CUTMIX},
    "gvbsm": {"views": 1000, "scale": (0.08, 1.0), **PLAIN_BOX, **CUTMIX},
    "edc": {"views": 1000, "scale": (0.08, 1.0), **PLAIN_BOX, **CUTMIX},
    "lic": {"views": 1000, "scale": (0.25, 1.0), "shift": 0, "tiles": 2,
            "tile_share": 0.5, **CUTMIX},
    "dream": {"views": 1000, "scale": (1.0, 1.0), "shift": 4, "tiles": 2, "tile_share": 1.0,
              **CUTMIX, "mix_probability": 0.5},
}  # fmt: skip

# Another value than every protocol's; `loss` is in a test of its own.
OTHER: dict[str, Any] = {
    "epochs": 7, "batch_size": {1: 3}, "optimizer": "sgd", "lr": 0.5, "weight_decay": 0.125,
    "schedule": "constant", "zeta": 3.5, "ce_weight": 0.75, "ema": 0.5, "temperature": 7.0,
    "views": 11, "scale": (0.3, 0.4), "shift": 3, "tiles": 7, "tile_share": 0.25, "mix": "none",
    "mix_alpha": 0.3, "mix_probability": 0.7,
}  # fmt: skip


def resolved(protocol: str, **sections: dict[str, Any]) -> Config:
    student = {"protocol": protocol, **sections.pop("student", {})}
    return config_file.from_dict({"student": student, **sections})


@pytest.mark.parametrize("protocol", STUDENT)
def test_a_protocol_has_the_numbers_of_its_source(protocol: str):
    config = resolved(protocol)
    for section, expected in ((config.student, STUDENT), (config.relabel, VIEWS)):
        assert {key: getattr(section, key) for key in expected[protocol]} == expected[protocol]


def test_every_protocol_can_be_named():
    assert set(get_args(Protocol)) == protocols.PROTOCOLS.keys() == STUDENT.keys() | {"default"}


@pytest.mark.parametrize(
    ("protocol", "key"),
    [
        (protocol, key)
        for protocol, keys in protocols.PROTOCOLS.items()
        for key in OTHER
        if key != "temperature" or keys["loss"] == "kl"  # mse has none
    ],
)
def test_the_users_value_always_wins(protocol: str, key: str):
    is_view = key in protocols.view_keys(protocol)
    name = "relabel" if is_view else "student"
    section = getattr(resolved(protocol, **{name: {key: OTHER[key]}}), name)
    assert getattr(section, key) == OTHER[key]
    rest = protocols.view_keys(protocol) if is_view else protocols.student_keys(protocol)
    if key == "tiles":
        rest["tile_share"] = rest["tile_share"] or protocols.TILE_SHARE  # tiles are to be seen
    for other, value in rest.items():
        assert other == key or getattr(section, other) == value


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_the_users_loss_wins_and_finds_a_temperature(protocol: str):
    own = protocols.student_keys(protocol).get("temperature", protocols.TEMPERATURE)
    for loss, temperature in (("kl", own), ("mse", None)):
        student = resolved(protocol, student={"loss": loss}).student
        assert (student.loss, student.temperature) == (loss, temperature)


def test_no_key_of_a_protocol_goes_untested():
    keys = {key for name in protocols.PROTOCOLS for key in protocols.student_keys(name)}
    keys |= {key for name in protocols.PROTOCOLS for key in protocols.view_keys(name)}
    assert keys == OTHER.keys() | {"loss"}


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_the_train_command_knows_every_protocol(
    protocol: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ["fedistill", "train", "nowhere", "--data", "digits", "--protocol", protocol]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        cli.main()
    assert "nowhere is not a distilled set" in capsys.readouterr().err
