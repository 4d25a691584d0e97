"""Sections of a config that depend on each other: what one asks of another, and refuses."""

import pytest
from fakes import refusal

from fedistill import config_file
from fedistill.config_file import dump, loads


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
    assert (uneven.relabel.name, uneven.federation.slots) == ("consensus", "even")
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
def test_a_choice_of_teachers_is_not_for_own_and_single(name: str):
    text = refusal(f"relabel: {{name: {name}, teacher_choice: coverage}}")
    assert "teacher_choice" in text
    assert "accepted: name: mix, mean or consensus" in text
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
