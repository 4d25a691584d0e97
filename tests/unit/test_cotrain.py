"""Co-training on the server: what it is matched to, what moves, what stays."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import CPU, Constant, tiny_config, tiny_images, tiny_set, tiny_spec, tiny_teacher

from fedistill import config_file, data, mosaic, planning, whitening
from fedistill import cotrain as module
from fedistill.config import DataConfig
from fedistill.cotrain import MIB, cotrain
from fedistill.errors import ClientsFailed, ConfigError, ModelError
from fedistill.images import ImageSet
from fedistill.sets import SyntheticSet
from fedistill.shares import Share

SPEC = tiny_spec()
QUICK: dict[str, Any] = {
    "iterations": 3, "width": 4, "depth": 2, "network_images": 6, "batch_real": 4, "lr": 1.0,
    "reference": "largest",
}  # fmt: skip
SETS = {ipc: tiny_set(ipc) for ipc in (1, 2, 4)}
TEACHERS = {3: tiny_teacher(3), 0: tiny_teacher(0)}


def run(
    sets: dict[int, SyntheticSet] = SETS, shares: tuple[Share, ...] = (), **options: Any
) -> Any:
    return cotrain(MIB(**{**QUICK, **options}), sets, shares, TEACHERS, seed=0, device=CPU)


def test_small_sets_move_and_the_largest_stays():
    found, curves = run(warmup=0.0)
    assert list(found) == [1, 2, 4]
    assert torch.equal(found[4].images, SETS[4].images)
    for ipc in (1, 2):
        assert found[ipc].images.shape == SETS[ipc].images.shape
        assert not torch.equal(found[ipc].images, SETS[ipc].images)
        assert torch.equal(found[ipc].hard_labels, SETS[ipc].hard_labels)
        assert torch.equal(found[ipc].clients, SETS[ipc].clients)
    assert {"matching/ipc-1", "matching/ipc-2", "information/1-4"} <= set(curves)
    assert "matching/ipc-4" not in curves


def test_the_same_call_gives_the_same_sets():
    first, second = run()[0], run()[0]
    assert [first[n].sha256 for n in first] == [second[n].sha256 for n in second]
    other = cotrain(MIB(**QUICK), SETS, (), TEACHERS, seed=1, device=CPU)[0]
    assert other[1].sha256 != first[1].sha256


def test_teachers_answer_for_the_networks_and_with_soft_targets_for_the_gradients():
    seen = []
    for targets in ("hard", "soft"):
        teacher = Constant([1.0, 0.0, 0.0])
        options = MIB(**{**QUICK, "iterations": 1, "weight": 0.0}, targets=targets)  # type: ignore[arg-type]
        cotrain(options, SETS, (), {0: teacher}, seed=0, device=CPU)
        seen.append(teacher.seen)
    # The network's batch; then for each class 4 real images, and those of the two small sets.
    assert seen == [6, 6 + 3 * (4 + 1 + 2)]


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_a_teacher_whose_answers_are_not_finite_spoils_no_set(targets: str):
    options = MIB(**{**QUICK, "network_batch_size": 2}, targets=targets)  # type: ignore[arg-type]
    told: list[int] = []
    worst = Constant([math.inf, 0.0, 0.0])
    teachers = {**TEACHERS, 5: worst}
    found, curves = cotrain(
        options, SETS, (), teachers, seed=0, device=CPU, left_out=lambda n, why: told.append(n)
    )
    assert told == [5]
    assert all(math.isfinite(value) for curve in curves.values() for _, value in curve)
    assert not torch.equal(found[1].images, SETS[1].images)
    with pytest.raises(ClientsFailed, match="no client is left that answers"):
        cotrain(options, SETS, (), {5: worst}, seed=0, device=CPU)


SENT = tiny_images(3).images[:7]
SHARES = (
    Share(partition_id=0, images=SENT[:4], counts=(1, 1, 0, 0, 1, 1), seconds={}),
    Share(partition_id=1, images=SENT[4:], counts=(0, 0, 1, 1, 1, 0), seconds={}),
)
LABELS = [0, 1, 1, 2, 2, 0, 1]


@pytest.fixture
def matched_to(monkeypatch: pytest.MonkeyPatch) -> list[ImageSet]:
    """The references of the loops that run."""
    seen: list[ImageSet] = []

    class Watched(module.Condenser):
        def __init__(self, options: Any, reference: Any, *rest: Any, **more: Any) -> None:
            seen.append(reference.images)
            super().__init__(options, reference, *rest, **more)

    monkeypatch.setattr(module, "Condenser", Watched)
    return seen


def test_the_union_is_every_image_that_was_sent(matched_to: list[ImageSet]):
    run(shares=SHARES, reference="union")
    assert torch.equal(matched_to[0].images, SENT)
    assert matched_to[0].labels.tolist() == LABELS


def test_tiles_are_enlarged_as_networks_see_them():
    """Enlarged in pixels and whitened then, a set would be far from itself."""
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(64, 192, (40, *SENT.shape[1:]), generator=stream, dtype=torch.uint8)
    spec = replace(SPEC, zca=whitening.fit(pixels))
    images = ImageSet(pixels, torch.zeros(40, dtype=torch.int64))
    found = spec.normalise(module._as_seen(images, 2, spec).images)
    own = mosaic.expand(spec.normalise(pixels), 2)
    assert (found - own).norm() < 0.05 * own.norm()


@pytest.mark.parametrize("at_once", [3, 1000])
def test_tiles_of_mosaics_stand_for_real_images(
    matched_to: list[ImageSet], monkeypatch: pytest.MonkeyPatch, at_once: int
):
    """As students see them: a mosaic as a whole is an image that no student is shown."""
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    run(shares=SHARES, reference="union", tiles=2)
    run(tiles=2)
    union, largest = matched_to
    for found, mosaics, labels in (
        (union, SENT, torch.tensor(LABELS)),
        (largest, SETS[4].images, SETS[4].hard_labels),
    ):
        tiles = mosaic.expand(mosaics.float(), 2)
        assert found.images.dtype == torch.uint8
        assert (found.images.float() - tiles).abs().max() <= 0.5
        assert torch.equal(found.labels, labels.repeat_interleave(4))


def test_real_images_are_no_mosaics(matched_to: list[ImageSet]):
    digits = data.load(DataConfig(name="digits", size=8), 0)
    spec = replace(digits.spec, name="tiny")
    sets = {1: tiny_set(1, spec=spec)}
    options = MIB(**QUICK | {"reference": "public", "public": "digits", "tiles": 2})
    cotrain(options, sets, (), {0: Constant([0.0] * 10)}, seed=0, device=CPU)
    assert torch.equal(matched_to[0].images, digits.train.images)


@pytest.mark.parametrize(
    ("sections", "tiles"),
    [
        ({"distill": {"name": "sre2l"}}, 1),
        ({"distill": {"name": "mibdc"}}, 2),
        ({"distill": {"name": "dream", "tiles": 4}}, 4),
        ({"distill": {"name": "dream"}, "relabel": {"tiles": 1}}, 1),  # students see them whole
        ({"distill": {"name": "mibdc"}, "cotrain": {"tiles": 1}}, 1),
    ],
)
def test_tiles_left_out_are_those_that_students_see(sections: dict[str, Any], tiles: int):
    tree = {"distill": {"ipc": [1, 2]}, "cotrain": {"width": 4}}
    for key, section in sections.items():
        tree[key] = {**tree.get(key, {}), **section}
    config = config_file.from_dict(tree)
    assert config.cotrain is not None
    assert config.cotrain.options["tiles"] == tiles
    assert config_file.loads(config_file.dump(config)) == config


def test_a_public_set_moves_all_sizes():
    digits = data.load(replace(tiny_config().data, fraction=0.1), 0)
    sets = {
        ipc: SyntheticSet(
            spec=digits.spec,
            images=digits.train.images[:10].repeat(ipc, 1, 1, 1),
            hard_labels=torch.arange(10).repeat(ipc),
            clients=torch.zeros(10 * ipc, dtype=torch.int64),
        )
        for ipc in (1, 2)
    }
    for ipc, synthetic in sets.items():
        order = synthetic.hard_labels.argsort(stable=True)
        sets[ipc] = replace(
            synthetic, images=synthetic.images[order], hard_labels=synthetic.hard_labels[order]
        )
    teachers = {0: Constant([0.0] * 10)}
    options = MIB(**QUICK | {"reference": "public", "public": "digits"})
    found, _ = cotrain(options, sets, (), teachers, seed=0, device=CPU)
    assert all(not torch.equal(found[n].images, sets[n].images) for n in sets)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"distill": {"ipc": [10, 1]}, "cotrain": "mib"}, r"ipc is \[10, 1\].*accepted: \[1, 10\]"),
        ({"distill": {"ipc": [5]}, "cotrain": "mib"}, "there are no others"),
        ({"distill": {"ipc": [1, 2]}, "cotrain": {"tiles": 2}}, "cotrain.tiles is 2"),
        (
            {
                "data": {"name": "mnist"},
                "distill": {"ipc": [1]},
                "cotrain": {"reference": "public", "public": "digits"},
            },
            "cotrain.public is digits, which has 10 classes",
        ),
        ({"distill": {"ipc": [1, 2]}, "cotrain": {"depth": 9}}, "cotrain.depth"),
        (
            {"distill": {"ipc": [1]}, "cotrain": {"reference": "public", "public": "devices"}},
            "cotrain.public is devices, and what the devices have is not public",
        ),
        (
            {"distill": {"ipc": [1]}, "cotrain": {"reference": "public", "public": "/nowhere"}},
            "cotrain.public, read as a data.name: .*'/nowhere'",
        ),
    ],
)
def test_what_cannot_be_trained_together_is_refused(sections: dict[str, Any], says: str):
    with pytest.raises((ConfigError, ModelError), match=says):
        planning.check(tiny_config(**sections), SPEC)


def test_public_images_of_other_classes_are_told_by_the_first_that_differs():
    digits = data.load(tiny_config().data, 0).spec
    names = (*digits.class_names[:5], "six", *digits.class_names[6:])
    options = MIB(reference="public", public="digits")
    with pytest.raises(ConfigError, match=r"number 5 is '5'\).*accepted: .*number 5 is 'six'\)"):
        options.public_images(replace(digits, class_names=names), 0)
    with pytest.raises(ConfigError, match=r"10 classes in 1 channel.*accepted: 10 classes in 3"):
        options.public_images(replace(digits, channels=3), 0)


@pytest.mark.parametrize("name", ["mnist", "ylecun/mnist"])
def test_the_data_of_the_clients_are_no_public_ones_by_any_name(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    loaded = data.load(tiny_config().data, 0)
    monkeypatch.setattr(data, "load", lambda config, seed: loaded)
    options = MIB(reference="public", public=name)
    for own, refused in (("mnist", True), ("ylecun/mnist", True), ("digits", False)):
        config = tiny_config(data={"name": own, "fraction": 1.0})
        if refused:
            with pytest.raises(ConfigError, match="which is the data of the clients"):
                options.check(config, 1, loaded.spec)
        else:
            options.check(config, 1, loaded.spec)


def test_one_class_has_nothing_to_tell():
    one = tiny_spec(num_classes=1)
    with pytest.raises(ConfigError, match="one class, 'class 0'"):
        planning.check(tiny_config(distill={"ipc": [1, 2]}, cotrain="mib"), one)
    for section, options in (
        ("distill", {"name": "mibdc", "depth": 2}),
        ("cotrain", {"depth": 2}),
    ):
        for more, refused in (
            ({}, True),
            ({"weight": 0}, False),
            ({"estimator": "features"}, False),
        ):
            tree: dict[str, Any] = {"distill": {"ipc": [1, 2]}, "model": {"depth": 2}}
            tree[section] = {**tree.get(section, {}), **options, **more}
            config = config_file.from_dict(tree)
            if refused:
                with pytest.raises(ConfigError, match=rf"{section}\.weight is 0.1.*one class"):
                    planning.check(config, one)
            else:
                planning.check(config, one)


def test_sizes_of_mibdc_must_rise():
    tree = {"distill": {"name": "mibdc", "ipc": [2, 1], "depth": 2}, "model": {"depth": 2}}
    with pytest.raises(ConfigError, match=r"accepted: \[1, 2\]"):
        planning.check(config_file.from_dict(tree), SPEC)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "mob"}, "cotrain.name: 'mob' does not exist"),
        ({"iteration": 3}, "cotrain.iteration: unknown key.*did you mean 'iterations'"),
        ({"reference": "public"}, "reference is public and public is None"),
        ({"public": "digits"}, "reference is union and public is 'digits'"),
        ({"reference": "biggest"}, "cotrain.reference"),
        ({"iterations": 0}, "iterations is 0"),
        (["mib"], "cotrain"),
        (3, "cotrain"),
    ],
)
def test_a_wrong_section_is_refused(section: Any, says: str):
    with pytest.raises(ConfigError, match=says):
        tiny_config(cotrain=section)


def test_the_section_is_filled_in_and_comes_back():
    config = tiny_config(distill={"ipc": [1, 2]}, cotrain={"iterations": 5})
    assert config.cotrain is not None
    assert config.cotrain.name == "mib"
    assert config.cotrain.options["iterations"] == 5
    assert config.cotrain.options["alpha"] == MIB().alpha
    assert config_file.loads(config_file.dump(config)) == config
    assert config_file.sha256(config) != config_file.sha256(tiny_config(distill={"ipc": [1, 2]}))
