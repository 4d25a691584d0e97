"""Configs: what is left out is filled in, and what was read is told back."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedistill import config_check, config_file, protocols, registry
from fedistill.config import Config, ModelConfig
from fedistill.config_check import schema
from fedistill.config_file import dump, from_dict, load, loads, sha256, to_dict

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def test_an_empty_config_is_a_whole_experiment():
    config = loads("")
    assert config == from_dict({})
    assert config.distill.ipc == (10,)
    assert config.student.models == (ModelConfig(name="convnet"),)
    assert config.student.epochs == protocols.PROTOCOLS["default"]["epochs"]
    assert config.relabel.scale == protocols.PROTOCOLS["default"]["scale"]
    assert config.distill.options["iterations"] == 1000


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_resolving_leaves_no_key_of_student_and_views_open(protocol: str):
    config = from_dict({"student": {"protocol": protocol}})
    open_keys = {key for key, value in dataclasses.asdict(config.student).items() if value is None}
    assert open_keys == ({"temperature"} if config.student.loss == "mse" else set())
    may_be_open = {"flip"}  # the data set decides
    views = dataclasses.asdict(config.relabel)
    assert {key for key, value in views.items() if value is None} == may_be_open
    for key, value in protocols.PROTOCOLS[protocol].items():
        section = config.student if hasattr(config.student, key) else config.relabel
        assert getattr(section, key) == value


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_the_experiments_are_valid(path: Path):
    assert load(path).distill.ipc


def test_a_round_of_fedavg_is_as_long_as_a_teachers_training_unless_the_user_says():
    assert loads("teacher: {epochs: 7}").fedavg.epochs == 7
    assert loads("teacher: {epochs: 7}\nfedavg: {epochs: 2}").fedavg.epochs == 2


def test_a_value_of_the_user_beats_the_protocol():
    config = loads(
        "student: {protocol: edc, epochs: 7, ema: 0}\nrelabel: {scale: [1, 1], shift: 2}"
    )
    assert (config.student.epochs, config.student.ema) == (7, 0.0)
    assert (config.relabel.scale, config.relabel.shift) == ((1.0, 1.0), 2)
    assert config.student.schedule == "multistep"


def test_values_are_written_as_people_write_them():
    config = loads("teacher: {lr: 1e-3}\ndistill: {ipc: 5, lr: 1e-2}\nstudent: {models: resnet18}")
    assert config.teacher.lr == 0.001
    assert config.distill.ipc == (5,)
    assert config.distill.options["lr"] == 0.01
    assert config.student.networks == (ModelConfig(name="resnet18"),)


def test_a_bare_student_name_means_the_network_of_the_teachers():
    tree = {"model": {"width": 16, "depth": 2}, "student": {"models": ["convnet", "resnet18"]}}
    small, resnet = from_dict(tree).student.networks
    assert small == ModelConfig(name="convnet", width=16, depth=2)
    assert resnet == ModelConfig(name="resnet18")


def test_a_list_of_models_is_dealt_to_the_clients_in_turn():
    config = loads("model: [{name: convnet, width: 8}, {name: resnet18}]")
    assert [config.teacher_model(client).name for client in range(3)] == [
        "convnet", "resnet18", "convnet",
    ]  # fmt: skip


def test_overrides_change_single_keys():
    overrides = ["teacher.epochs=3", "distill.ipc=[1, 2]", "data.name=cifar10", "seed=4"]
    config = loads("teacher: {lr: 0.5}", overrides)
    assert (config.teacher.epochs, config.teacher.lr) == (3, 0.5)
    assert config.distill.ipc == (1, 2)
    assert (config.data.name, config.seed) == ("cifar10", 4)


def test_overrides_come_after_the_file_and_in_order():
    assert loads("seed: 1", ["seed=2", "seed=3"]).seed == 3


configs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,4}", fullmatch=True),
        "seed": st.integers(-(2**40), 2**70),
        "data": st.fixed_dictionaries({}, optional={"flip": st.booleans(), "size": st.just(16)}),
        "model": st.one_of(
            st.just({"name": "convnet", "norm": "instance"}),
            st.just([{"name": "convnet", "width": 8}, {"name": "resnet18"}]),
        ),
        "distill": st.fixed_dictionaries(
            {},
            optional={
                "ipc": st.sampled_from([1, [1, 10], [50]]),
                "lr": st.floats(1e-6, 10),
                "regularizers": st.just([{"name": "total_variation", "weight": 1e-3}]),
            },
        ),
        "relabel": st.fixed_dictionaries({}, optional={"scale": st.just([0.3, 0.9])}),
        "student": st.fixed_dictionaries(
            {"protocol": st.sampled_from(sorted(protocols.PROTOCOLS))},
            optional={
                "batch_size": st.sampled_from([7, {1: 10, 50: 100}]),
                "epochs": st.sampled_from([3, {1: 9, 10: 5}]),
                "models": st.just(["convnet", {"name": "convnet", "depth": 3}, "resnet18"]),
            },
        ),
        "baselines": st.sampled_from([[], ["random", "hard_label"]]),
        "tracking": st.sampled_from([{"uri": "http://a"}, {"enabled": False}]),
    },
)


@given(tree=configs)
def test_a_dumped_config_is_read_back_as_it_was(tree: dict[str, Any]):
    config = from_dict(tree)
    assert loads(dump(config)) == config
    assert from_dict(to_dict(config)) == config
    assert sha256(loads(dump(config))) == sha256(config)


def test_the_hash_is_of_the_experiment_and_not_of_where_it_is_recorded():
    base = sha256(loads("seed: 1"))
    assert sha256(loads("seed: 1\ntracking: {uri: http://x, experiment: e}")) == base
    assert sha256(loads("seed: 1\nteacher: {epochs: 20}")) == base  # the default, written out
    for other in ("seed: 2", "seed: 1\nteacher: {epochs: 21}", "seed: 1\ndistill: {lr: 0.2}"):
        assert sha256(loads(other)) != base


def test_the_schema_lists_every_key_of_the_file():
    found = json.loads(json.dumps(schema()))
    assert set(found["properties"]) == {field.name for field in dataclasses.fields(Config)}
    distill = found["$defs"]["DistillConfig"]
    assert set(distill["properties"]) == {"name", "ipc", "regularizers"}
    assert distill["additionalProperties"] is True
    assert found["$defs"]["TeacherConfig"]["additionalProperties"] is False


@pytest.mark.parametrize("kind", ["distillers", "losses"])
def test_options_of_a_part_are_frozen_keywords_with_defaults(kind: str):
    for name in registry.names(kind):
        part = registry.load(kind, name)
        assert part.__dataclass_params__.frozen, name
        assert config_check.parse(part, {})[1] == []


def test_a_bare_name_is_a_network():
    given = {"model": ["convnet", "resnet18"], "teacher": {"backbones": ["convnet", "resnet50"]}}
    config = config_file.from_dict(given)
    assert config.model == (ModelConfig(name="convnet"), ModelConfig(name="resnet18"))
    assert [model.name for model in config.teachers_of(1)] == ["convnet", "resnet50"]
    assert config_file.from_dict({"model": "resnet18"}).model == ModelConfig(name="resnet18")
    assert config_file.loads(config_file.dump(config)) == config


def test_one_value_may_stand_for_a_list():
    term = {"name": "total_variation", "weight": 0.5}
    one = {"baselines": "random", "distill": {"regularizers": term, "ipc": 2}}
    many = {"baselines": ["random"], "distill": {"regularizers": [term], "ipc": [2]}}
    assert config_file.from_dict(one) == config_file.from_dict(many)
