"""Wrong configs: refused with every error at once, never a traceback."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import refusal
from hypothesis import given
from hypothesis import strategies as st

from fedistill import config_file
from fedistill.config import Config
from fedistill.config_file import dump, from_dict, load, loads
from fedistill.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("seed", "not of the form"),
        ("=3", "not of the form"),
        ("seed.a=3", "not a section"),
        ("teacher.epohs=3", "did you mean 'epochs'?"),
        ("teacher.lr=[", "not valid YAML"),
        ("teacher.lr=2020-13-45", "not valid YAML"),
        ("a..b=3", "unknown key"),
        ("teacher=3", "teacher: is 3"),
    ],
)
def test_a_bad_override_is_refused(override: str, text: str):
    assert text in refusal("seed: 1", override)


@pytest.mark.parametrize(
    ("text", "place", "meant"),
    [
        ("sed: 1", "sed", "seed"),
        ("data: {nme: digits}", "data.nme", "name"),
        ("partition: {client: 3}", "partition.client", "clients"),
        ("model: {widht: 3}", "model.widht", "width"),
        ("model: [{depht: 3}]", "model.0.depht", "depth"),
        ("teacher: {epoch: 3}", "teacher.epoch", "epochs"),
        ("distill: {iterationz: 3}", "distill.iterationz", "iterations"),
        ("distill: {ipcs: 3}", "distill.ipcs", "ipc"),
        ("relabel: {view: 3}", "relabel.view", "views"),
        ("student: {epcohs: 3}", "student.epcohs", "epochs"),
        ("student: {models: [{nam: convnet}]}", "student.models.0.nam", "name"),
        ("fedavg: {round: 3}", "fedavg.round", "rounds"),
        ("federation: {deadline: 3}", "federation.deadline", "deadline_s"),
        ("tracking: {enable: true}", "tracking.enable", "enabled"),
        (
            "distill: {regularizers: [{name: image_norm, wieght: 1, weight: 1}]}",
            "distill.regularizers.0.wieght",
            "weight",
        ),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_one(text: str, place: str, meant: str):
    message = refusal(text)
    assert f"{place}: unknown key" in message
    assert f"did you mean '{meant}'?" in message


def test_all_errors_come_at_once():
    message = refusal("""
        sed: 1
        teacher: {lr: fast, epoch: 3}
        partition: {clients: 0, name: dirichlet, alpha: -1}
        distill: {name: sre2l, iteratons: 3, ipc: 0}
        relabel: {scale: [1, 0.5]}
    """)
    for part in ("sed", "teacher.lr", "teacher.epoch", "clients is 0", "alpha is -1", "iteratons",
                 "ipc is [0]", "scale is [1.0, 0.5]"):  # fmt: skip
        assert part in message, part


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "fraction", 0),
        ("data", "fraction", 1.5),
        ("data", "validation", 1),
        ("data", "size", 2),
        ("partition", "clients", 0),
        ("partition", "name", "sharded"),
        ("partition", "alpha", 0.5),  # of dirichlet and quantity alone
        ("partition", "min_samples", 0),
        ("model", "depth", 0),
        ("model", "norm", "layer"),
        ("teacher", "epochs", 0),
        ("teacher", "batch_size", 1),
        ("teacher", "lr", 0),
        ("teacher", "warmup", 1),
        ("teacher", "momentum", -0.1),
        ("teacher", "weight_decay", -1),
        ("teacher", "label_smoothing", 1),
        ("teacher", "shift", -1),
        ("distill", "name", "sre3l"),
        ("distill", "name", "base"),
        ("distill", "ipc", []),
        ("distill", "ipc", [1, 1]),
        ("distill", "ipc", None),
        ("distill", "iterations", 0),
        ("distill", "crop", 0),
        ("distill", "order", "random"),
        ("distill", "options", {"iterations": 3}),
        ("distill", "regularizers", [{"name": "image_nrm", "weight": 1}]),
        ("distill", "regularizers", [{"name": "image_norm"}]),
        ("distill", "regularizers", [{"name": "soft_labels", "weight": 1}]),
        ("relabel", "name", "all"),
        ("relabel", "views", 0),
        ("relabel", "scale", [0, 1]),
        ("relabel", "scale", [0.5]),
        ("relabel", "mix_alpha", 0),
        ("relabel", "mix_probability", 1.1),
        ("relabel", "shift", -1),
        ("student", "protocol", "sota"),
        ("student", "epochs", 0),
        ("student", "seeds", 0),
        ("student", "models", []),
        ("student", "batch_size", 0),
        ("student", "batch_size", {}),
        ("student", "batch_size", {1: 0}),
        ("student", "batch_size", {"small": 3}),
        ("student", "epochs", {1: 0}),
        ("student", "epochs", {0: 3}),
        ("student", "epochs", {}),
        ("student", "weight_decay", -1),
        ("student", "ce_weight", -1),
        ("student", "temperature", 0),
        ("student", "ema", 1),
        ("fedavg", "rounds", 0),
        ("fedavg", "epochs", 0),
        ("federation", "min_clients", 0),
        ("federation", "deadline_s", 0),
        ("federation", "gpus_per_client", -1),
    ],
)
def test_a_bad_value_is_refused_where_it_stands(section: str, key: str, value: Any):
    message = refusal(yaml.safe_dump({section: {key: value}}))
    line = next(line for line in message.splitlines() if line.startswith(f"  - {section}"))
    assert key in line, message


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    "text",
    [
        "teacher: {lr: VALUE}",
        "student: {lr: VALUE}",
        "federation: {deadline_s: VALUE}",
        "distill: {bn_weight: VALUE}",
        "distill: {regularizers: [{name: image_norm, weight: VALUE}]}",
    ],
)
def test_numbers_are_finite(text: str, value: str):
    assert "finite number" in refusal(text.replace("VALUE", value))


@pytest.mark.parametrize(
    "text",
    [
        "seed: true",
        "partition: {clients: yes}",
        "distill: {ipc: true}",
        "distill: {ipc: [5, true]}",
        "distill: {iterations: true}",
        "relabel: {scale: [true, 1]}",
        "teacher: {lr: on}",
        "student: {batch_size: {1: true}}",
    ],
)
def test_true_is_not_a_number(text: str):
    assert "is True; accepted: a number" in refusal(text)


SURPRISES = [
    "- a",
    "5",
    "a: b: c",
    "\t",
    "\0",
    "!!python/object/apply:os.system [ls]",
    "2020-01-01: 3",
    "seed: 2020-13-45",
    "x: 0x_",
    "1: 2",
    "null: 3",
    "true: 3",
    "1.5: 3",
    "[1, 2]: 3",
    "? {a: 1}\n: 3",
    "a: &a [*a]",
    "teacher: &a {b: *a}",
    "x: &x {clients: 2}\npartition: *x",
    "a: " + "[" * 2000 + "]" * 2000,
    "int: 5",
    "none: 5",
    "ModelConfig: 5",
    "'tuple[a': 5",
    "function-a: 5",
    "model: {none: 1}",
    "model: {int: 1}",
    "student: {str: 1}",
    "student: {models: [{none: 1}]}",
    "distill: {none: 1}",
    "distill: {tuple[: 1}",
    "seed: [1]",
    "seed: {a: 1}",
    "seed: null",
    "seed: 1.5",
    "name: null",
    "name: 5",
    "name: [a]",
    "cotrain: {name: [mib]}",
    "cotrain: 7",
    "baselines: null",
    "baselines: {random: 1}",
    "baselines: [rando]",
    "model: []",
    "model: [[]]",
    "model: {name: resnet18, width: 3}",
    "model: {name: {a: 1}}",
    "student: {models: null}",
    "student: {models: 3}",
    "student: {models: [null]}",
    "student: {models: [[convnet]]}",
    "student: {batch_size: [1]}",
    "student: {batch_size: {1: {}}}",
    "student: {batch_size: {[1]: 2}}",
    "distill: {name: null}",
    "distill: {name: [sre2l]}",
    "distill: {ipc: {10: 1}}",
    "distill: {ipc: ten}",
    "distill: {regularizers: null}",
    "distill: {regularizers: image_norm}",
    "distill: {regularizers: [image_norm]}",
    "distill: {regularizers: [{name: 3, weight: 1}]}",
    "distill: {regularizers: [{name: ../errors, weight: 1}]}",
    "distill: {name: sre2l.SRe2L}",
    "relabel: {scale: 0.5}",
    "relabel: {scale: {a: 1}}",
    "relabel: {at: home}",
    "relabel: {teacher_choice: best}",
    "relabel: {prior_correction: 2}",
    "federation: {slots: 3}",
    "tracking: {uri: 5}",
    *(
        f"{section}: {value}"
        for section in ("data", "partition", "model", "teacher", "distill", "relabel", "student",
                        "federation", "tracking")
        for value in ("null", "[]", "3", "text", "true")
        if (section, value) != ("model", "text")  # the bare name of a network
    ),
]  # fmt: skip


@pytest.mark.parametrize("text", SURPRISES, ids=lambda text: repr(text)[:40])
def test_a_surprise_is_a_config_error_and_never_a_traceback(text: str):
    assert refusal(text).strip()


keys = st.sampled_from(
    [
        *(field.name for field in dataclasses.fields(Config)),
        *("epochs", "ipc", "models", "scale", "weight", "regularizers", "options", "none", "int"),
    ]
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), keys
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(keys, leaves), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(tree=st.dictionaries(keys, trees, max_size=4))
def test_any_tree_is_a_config_or_a_config_error(tree: dict[str, Any]):
    try:
        config = from_dict(tree)
    except ConfigError:
        return
    assert loads(dump(config)) == config


@pytest.mark.parametrize(
    "text",
    ["seed: 0\nname: a\nseed: 1", "teacher: {lr: 1, lr: 2}", "model: [{width: 1, width: 2}]"],
)
def test_a_key_that_is_there_twice_is_refused(text: str):
    assert "is there twice" in refusal(text)


def test_a_missing_file_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml"):
        load(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distill: {regularizers: cmi}", "distill.regularizers.0.weight: is missing"),
        ("distill: {regularizers: [3]}", "distill.regularizers.0: is 3; accepted: a section"),
        ("data: 3", "data: is 3; accepted: a section of keys"),
    ],
)
def test_what_is_missing_is_told_in_words_of_the_file(text: str, says: str):
    with pytest.raises(ConfigError, match=says):
        config_file.loads(text)
