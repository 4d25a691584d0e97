"""Devices that bring networks of their own, some of which the experiment cannot be made with."""

import pytest
from deployed import Devices, deploy, named
from fakes import tiny_config, tiny_spec

from fedistill import config_file
from fedistill.config import ModelConfig
from fedistill.errors import ClientsFailed
from strategies import own_networks

pytestmark = pytest.mark.usefixtures("server")

INSTANCE = ModelConfig(name="convnet", depth=1, norm="instance")
SMALL = ModelConfig(name="convnet", depth=1, width=4)


def test_a_network_that_the_method_cannot_use_is_refused_and_the_others_are_adopted():
    config = tiny_config(partition={"clients": 3})
    adopted, refused = own_networks.adopt(config, tiny_spec(), {0: INSTANCE, 2: SMALL})
    assert adopted.model == (config.model, config.model, SMALL)
    assert refused.keys() == {0}
    assert "the model of its node config, convnet, does not fit the experiment" in refused[0]
    assert "BatchNorm" in refused[0]


def test_networks_are_as_the_config_says_where_none_fits():
    config = tiny_config()
    assert own_networks.adopt(config, tiny_spec(), {}) == (config, {})
    assert own_networks.adopt(config, tiny_spec(), {1: INSTANCE})[0] == config


@pytest.mark.parametrize("baseline", ["fedavg", "weight_average"])
def test_where_weights_are_averaged_a_device_with_another_network_is_refused(baseline: str):
    config = tiny_config(baselines=[baseline])
    adopted, refused = own_networks.adopt(
        config, tiny_spec(), {0: SMALL, 1: config.teacher_model(1)}
    )
    assert refused.keys() == {0}
    assert f"{baseline} averages weights" in refused[0]
    assert adopted.teacher_models == (config.model, config.model)


def test_a_device_whose_network_does_not_fit_is_left_out_alone(config, folders):
    devices = named(folders)
    devices[1]["model"] = "{name: convnet, norm: instance}"
    result = deploy(config, Devices(devices))
    assert result["absent_clients"] == [1]
    assert "does not fit the experiment" in result["absent_because"]["1"]
    assert result["sets"]["2"]["images"] == 20


def test_a_device_that_cannot_play_the_rival_is_left_out_alone(config, folders):
    tree = config_file.to_dict(config) | {"baselines": ["fedavg"], "fedavg": {"rounds": 1}}
    devices = named(folders)
    devices[2]["model"] = "{name: convnet, depth: 1}"
    result = deploy(config_file.from_dict(tree), Devices(devices))
    assert result["absent_clients"] == [2]
    assert "fedavg_1" in result["sets"]["2"]["baselines"]


def test_a_run_with_too_few_fitting_networks_says_why_and_can_be_repeated(config, folders):
    devices = named(folders)
    for device in devices[:2]:
        device["model"] = "{name: convnet, norm: instance}"
    with pytest.raises(ClientsFailed, match=r"1 of 3 clients are left.*does not fit"):
        deploy(config, Devices(devices))
    assert deploy(config, Devices(named(folders)))["absent_clients"] == []
