"""Configs: filled in, told back, and refused with every error at once, never a traceback."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedistill import config_check, config_file, protocols, registry
from fedistill.config import Config, ModelConfig
from fedistill.config_check import schema
from fedistill.config_file import dump, from_dict, load, loads, sha256, to_dict
from fedistill.errors import ConfigError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        loads(text, overrides)
    return str(raised.value)


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


MIXED = "[{name: convnet, width: 4}, {name: convnet, width: 8}]"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"model: {MIXED}\nbaselines: fedavg", "fedavg averages weights, and model names 2"),
        (f"model: {MIXED}\nbaselines: weight_average", "the teachers names 2"),
        (f"teacher: {{backbones: {MIXED}}}\nbaselines: weight_average", "the teachers names 2"),
    ],
)
def test_weights_of_unlike_networks_are_not_averaged(text: str, where: str):
    assert where in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        f"model: {MIXED}\nbaselines: ensemble",
        f"teacher: {{backbones: {MIXED}}}\nbaselines: fedavg",  # it trains `model`
        "model: [{width: 4}, {width: 4}]\nbaselines: [fedavg, weight_average]",
        "teacher: {count: 3}\nbaselines: weight_average",
    ],
)
def test_weights_of_like_networks_may_be_averaged(text: str):
    assert loads(text).baselines


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


def test_who_wants_no_tiles_sees_mosaics_as_other_images():
    lic = config_file.from_dict({"distill": {"name": "lic"}, "relabel": {"tiles": 1}})
    other = config_file.from_dict({"relabel": {"tiles": 1}})
    assert lic.relabel == other.relabel
    assert lic.relabel.scale == (0.6, 1.0)


def test_who_asks_for_tiles_sees_some():
    assert config_file.from_dict({"relabel": {"tiles": 2}}).relabel.tile_share == 0.5
    none = config_file.from_dict({"relabel": {"tiles": 2, "tile_share": 0}})
    assert none.relabel.tile_share == 0
    assert config_file.loads(config_file.dump(none)) == none


def test_our_own_protocol_shows_the_tiles_of_a_mosaic():
    lic = config_file.from_dict({"distill": {"name": "lic"}})
    assert (lic.relabel.tiles, lic.relabel.tile_share) == (2, 0.5)
    assert lic.relabel.scale == (0.15, 1.0)
    published = config_file.from_dict({"distill": {"name": "lic"}, "student": {"protocol": "rded"}})
    assert (published.relabel.tiles, published.relabel.scale) == (1, (1.0, 1.0))


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "shards", "quantity"])
def test_labels_and_slots_follow_what_the_clients_hold(name: str):
    even, uneven = loads(""), loads(f"partition: {{name: {name}}}")
    assert (even.relabel.name, even.federation.slots) == ("mix", "even")
    assert (even.relabel.teacher_choice, even.relabel.prior_correction) == ("uniform", False)
    assert (uneven.relabel.name, uneven.federation.slots) == ("mean", "even")
    assert (uneven.relabel.teacher_choice, uneven.relabel.prior_correction) == ("coverage", False)
    mixed = loads(f"partition: {{name: {name}}}\nrelabel: {{name: mix}}")
    assert (mixed.relabel.teacher_choice, mixed.relabel.prior_correction) == ("coverage", True)
    wanted = "{teacher_choice: uniform, prior_correction: true}"
    slots = "federation: {slots: histogram}"
    given = loads(f"partition: {{name: {name}}}\nrelabel: {wanted}\n{slots}")
    assert given.relabel.teacher_choice == "uniform"
    assert given.relabel.prior_correction is True
    assert given.federation.slots == "histogram"
    assert loads(dump(given)) == given


@pytest.mark.parametrize("name", ["own", "single"])
def test_a_choice_of_teachers_is_for_mix_and_mean(name: str):
    text = refusal(f"relabel: {{name: {name}, teacher_choice: coverage}}")
    assert "teacher_choice" in text
    assert "accepted: name: mix or mean" in text
    assert loads("relabel: {name: mean, teacher_choice: coverage}")
    filled = loads(f"relabel: {{name: {name}}}\npartition: {{name: dirichlet}}")
    assert filled.relabel.teacher_choice == "uniform"
    assert loads(dump(filled)) == filled


@pytest.mark.parametrize("rest", ["baselines: [random, herding]", "baselines: ensemble",
                                  "baselines: [k_center]", "cotrain: {name: mib}"])  # fmt: skip
def test_what_needs_teachers_on_the_server_is_refused_when_they_stay_at_home(rest: str):
    text = refusal(f"{rest}\nrelabel: {{at: clients}}")
    assert rest.partition(":")[0] in text
    assert "relabel.at is clients" in text
    assert "accepted: " in text
    loads(rest)


def test_what_needs_no_teachers_is_accepted_when_they_stay_at_home():
    text = "baselines: [random, hard_label, full_data]\nstudent: {ranking: true}"
    assert loads(f"{text}\nrelabel: {{at: clients}}").relabel.at == "clients"


# Real devices

DEVICES = """
data: {name: devices, classes: [cat, dog], size: 28, channels: 1}
evaluate: {at: clients}
"""


def test_data_that_devices_alone_have_are_described_by_the_config():
    config = loads(DEVICES + "baselines: [hard_label]")
    assert (config.data.classes, config.data.size, config.data.channels) == (("cat", "dog"), 28, 1)
    assert loads(dump(config)) == config
    assert loads("").evaluate.at == "server"
    assert not loads("").privacy.allow_real_images


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.size=null"], "size is missing and name is devices"),
        (["data.channels=2"], "channels is 2 and name is devices; accepted: 1 or 3"),
        (["data.channels=null"], "channels is None"),
        (["data.classes=[cat]"], "accepted: two or more names"),
        (["data.classes=[cat, cat]"], "accepted: two or more names"),
        (["data.classes=[cat, ' ']"], "accepted: two or more names"),
        (["data.fraction=0.5", "data.zca=true"], "fraction, zca is given and name is devices"),
        (["data.validation=0.1"], "validation is given"),
        (["data.name=digits"], "classes, channels has no meaning for data 'digits'"),
        (["evaluate.at=server"], "no images to test on; accepted: evaluate.at: clients"),
        (["baselines=[random]"], "random, made of training images on the server"),
        (["baselines=[full_data, hard_label]"], "full_data, made of training images"),
        (["student={ranking: true}"], "student.ranking is true"),
        (["sweep={clients: [1, 2]}"], "sweep is given"),
    ],
)
def test_what_needs_images_on_the_server_is_refused_where_it_has_none(
    overrides: list[str], says: str
):
    assert says in refusal(DEVICES, *overrides)


@pytest.mark.parametrize("row", ["ensemble", "weight_average", "fedavg"])
def test_rows_that_are_no_students_cannot_be_tested_by_devices(row: str):
    text = f"evaluate: {{at: clients}}\nbaselines: [random, {row}]"
    assert f"baselines holds {row}, tested on the server" in refusal(text)
    assert "accepted: random, herding, k_center, hard_label, full_data" in refusal(text)
    assert "data.validation is 0.1" in refusal("evaluate: {at: clients}\ndata: {validation: 0.1}")
    assert loads("evaluate: {at: clients}\nbaselines: [random, full_data]").evaluate.at == "clients"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("evaluate: {at: home}", "'server' or 'clients'"),
        ("evaluate: {on: clients}", "unknown key"),
        ("privacy: {allow_real_image: true}", "did you mean 'allow_real_images'"),
        ("privacy: {allow_real_images: maybe}", "privacy.allow_real_images"),
    ],
)
def test_mistakes_in_the_sections_of_devices_are_named(text: str, says: str):
    assert says in refusal(text)
