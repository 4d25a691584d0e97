"""From the axes of a sweep to its federations."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import tiny_tree

from fedistill import config_file, grid
from fedistill.config import SweepConfig
from fedistill.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, {})


def written(folder: Path, sections: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(**sections)))
    return path


def test_every_choice_is_a_federation_and_makes_all_sizes(path: Path):
    axes = SweepConfig(clients=(1, 2, 5), ipc=(1, 3), seed=(0, 1))
    found = grid.load(path, ["student.epochs=7"], axes)
    assert [(it.config.seed, it.config.partition.clients) for it in found.federations] == [
        (seed, clients) for seed in (0, 1) for clients in (1, 2, 5)
    ]
    for it in found.federations:
        assert it.config.distill.ipc == (1, 3)
        assert it.config.student.epochs == 7
        assert it.config.sweep is None
    folders = [it.folder for it in found.federations]
    assert folders[0] == "runs/clients-01_seed-0"
    assert len(set(folders)) == len(folders)
    assert found.axes["alpha"] == [None]


def test_an_alpha_makes_the_split_dirichlet_and_iid_the_even_one(path: Path):
    found = grid.load(path, [], SweepConfig(alpha=("iid", 0.1), clients=(2,)))
    splits = [(it.config.partition.name, it.alpha) for it in found.federations]
    assert splits == [("iid", None), ("dirichlet", 0.1)]
    assert found.axes["alpha"] == [None, 0.1]
    quantity = grid.load(path, ["partition.name=quantity"], SweepConfig(alpha=(0.1,)))
    assert quantity.federations[0].config.partition.name == "quantity"
    # An option of the config's own split has no meaning for those of the axis, and no one gave it.
    own = ["partition.name=pathological", "partition.classes_per_client=1"]
    found = grid.load(path, own, SweepConfig(alpha=("iid", 0.1), clients=(2,)))
    assert [it.config.partition.name for it in found.federations] == ["iid", "dirichlet"]


def test_the_config_that_is_kept_names_all_axes(path: Path):
    axes = SweepConfig(clients=(1, 2), seed=(0, 1), vary={"relabel.views": (2, 3)})
    found = grid.load(path, [], axes)
    again = path.with_name("again.yaml")
    again.write_text(config_file.dump(found.base))
    assert grid.load(again).federations == found.federations


def test_only_the_configs_own_distiller_keeps_its_options(path: Path):
    found = grid.load(path, [], SweepConfig(distiller=("sre2l", "random")))
    own, other = (it.config.distill for it in found.federations)
    assert own.options["iterations"] == 3
    assert other.name == "random"
    assert "iterations" not in other.options
    assert found.federations[1].folder == "runs/clients-02_random_seed-0"


def test_the_command_line_wins_over_the_file_axis_by_axis(tmp_path: Path):
    path = written(tmp_path, {"sweep": {"clients": [1, 2], "seed": 3}})
    found = grid.load(path, [], grid.parse_axes({"clients": "4, 5", "ipc": None}))
    assert found.axes["clients"] == [4, 5]
    assert found.axes["seed"] == [3]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"clients": "1,two"}, "--clients is '1,two'"),
        ({"clients": ","}, "--clients is empty"),
        ({"ipc": "1,1"}, r"ipc \[1, 1\] has a value twice"),
        ({"alpha": "flat"}, "--alpha is 'flat'"),
        ({"distiller": "sre3l"}, "sre3l"),
        ({"clients": "0"}, "clients is 0"),
        ({"alpha": "-1"}, "alpha"),
    ],
)
def test_values_that_are_none_are_refused(path: Path, axes: dict[str, str | None], message: str):
    with pytest.raises(ConfigError, match=message):
        grid.load(path, [], grid.parse_axes(axes))


def test_an_empty_grid_is_refused(path: Path):
    with pytest.raises(ConfigError, match="names no axis to sweep over"):
        grid.load(path)


def test_every_combination_of_varied_keys_is_a_method_of_its_own(path: Path):
    axes = grid.parse_axes(
        {"clients": "1,2"}, ["distill.lr=0.1,0.00001", "distill.init=noise,real"]
    )
    found = grid.load(path, [], axes)
    assert len(found.federations) == 8
    methods = ["lr 0.1, init noise", "lr 0.1, init real", "lr 0.00001, init noise"]
    methods.append("lr 0.00001, init real")
    assert found.axes["distiller"] == [f"sre2l ({it})" for it in methods]
    options = [it.config.distill.options for it in found.federations]
    assert [(it["lr"], it["init"]) for it in options[::2]] == [
        (0.1, "noise"), (0.1, "real"), (0.00001, "noise"), (0.00001, "real"),
    ]  # fmt: skip
    assert found.federations[0].folder == "runs/clients-01_lr-0.1-init-noise_seed-0"
    assert len({it.folder for it in found.federations}) == 8
    assert found.federations[0].as_dict()["distiller"] == "sre2l (lr 0.1, init noise)"


def test_a_file_may_vary_keys_and_the_command_line_wins_key_by_key(tmp_path: Path):
    vary = {"student.lr": 0.01, "teacher.lr": [0.1, 0.2]}
    path = written(tmp_path, {"sweep": {"vary": vary}})
    found = grid.load(path, [], grid.parse_axes({}, ["teacher.lr=0.3"]))
    (only,) = found.federations
    assert only.config.teacher.lr == 0.3
    assert only.config.student.lr == 0.01
    assert only.method == "sre2l (student.lr 0.01, teacher.lr 0.3)"


def test_long_names_of_folders_are_cut_and_still_differ(path: Path):
    keys = [f"teacher.{name}=0.0100000000001,0.0100000000002" for name in ("lr", "weight_decay")]
    keys += [f"student.{name}=0.0100000000001,0.0100000000002" for name in ("lr", "weight_decay")]
    found = grid.load(path, [], grid.parse_axes({}, [*keys, "student.ce_weight=0.0000000001"]))
    folders = {it.folder for it in found.federations}
    assert len(folders) == 16
    assert max(map(len, folders)) < 180


def test_sizes_of_a_sweep_rise_in_whatever_order_they_are_given(path: Path):
    assert grid.load(path, [], grid.parse_axes({"ipc": "3,1"})).axes["ipc"] == [1, 3]


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        ("distill.lr", "accepted: KEY=VALUE,VALUE"),
        ("distill.lr=", "accepted: KEY=VALUE,VALUE"),
        ("=1,2", "accepted: KEY=VALUE,VALUE"),
        ("distill.lr=[1],2", "accepted: KEY=VALUE,VALUE"),
        ("distill.lr=1,}", "accepted: KEY=VALUE,VALUE"),
        ("distill.lr=1,1", r"distill.lr \[1, 1\] has a value twice"),
        ("seed=1,2", r"vary names seed \(axis seed\)"),
        ("distill.lrr=1,2", "lrr"),
        ("distill.lr=-1,1", "lr is -1"),
        ("student.seeds=1,'1'", "the same experiment"),
        ("model=convnet,2020-13-45", "accepted: KEY=VALUE,VALUE"),
        ("distill.lr=" + "[" * 3000, "accepted: KEY=VALUE,VALUE"),
        ("distill=sre2l,lic", r"vary names distill \(axis distiller\)"),
        ("sweep=null", "vary names sweep, which all federations of a sweep have in common"),
        ("sweep.clients=1,2", r"vary names sweep\.clients"),
        ("tracking.uri=a,b", r"vary names tracking\.uri"),
        ("data.name=digits,mnist", r"vary names data\.name"),
        ("federation.gpus_per_client=0,1", r"vary names federation\.gpus_per_client"),
    ],
)
def test_varied_keys_that_are_none_are_refused(path: Path, varied: str, message: str):
    with pytest.raises(ConfigError, match=message):
        grid.load(path, [], grid.parse_axes({}, [varied]))


def test_a_key_is_varied_once():
    with pytest.raises(ConfigError, match="names a key twice"):
        grid.parse_axes({}, ["student.seeds=1", "student.seeds=2,3"])


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"distill": {"lr": [1, 2]}}, r"sweep\.vary\.distill"),
        ({"distill.lr": [[1]]}, r"sweep\.vary\.distill\.lr\.0: "),
        ([1], r"sweep\.vary: is \[1\]; accepted: a valid dictionary"),
        ({"distill.lr": []}, r"gives no values to \['distill\.lr'\]"),
    ],
)
def test_a_file_that_varies_nothing_is_refused(tmp_path: Path, vary: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        grid.load(written(tmp_path, {"sweep": {"vary": vary}}))
