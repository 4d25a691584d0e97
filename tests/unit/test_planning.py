"""What is refused before any client works, and who makes which images of what real ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fakes import tiny_config, tiny_spec

from fedistill import planning, registry, slots
from fedistill.config import Config, ModelConfig
from fedistill.distillers.base import Distilled, Distiller, Task
from fedistill.errors import ConfigError, ModelError, PartitionError

SPEC = tiny_spec()


@dataclass(frozen=True, kw_only=True)
class Pairs(Distiller):
    """Would make each image of two real ones."""

    @property
    def takes_regularizers(self) -> bool:
        return False

    @property
    def real_images_per_image(self) -> int:
        return 2

    def distill(self, task: Task) -> Distilled:
        raise AssertionError("planning never distils")


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config for `Pairs`, which the registry knows as `two-by-two`."""
    real = registry._parts

    def parts(kind: str) -> Mapping[str, type[Any]]:
        return {**real(kind), **({"two_by_two": Pairs} if kind == "distillers" else {})}

    monkeypatch.setattr(registry, "_parts", parts)
    config = tiny_config()
    return replace(config, distill=replace(config.distill, name="two_by_two", options={}))


def test_what_fits_is_let_through(pairs: Config):
    planning.check(tiny_config(), SPEC)
    planning.check(pairs, SPEC)
    assert isinstance(planning.distiller_of(pairs), Pairs)


def test_the_network_of_fedavg_must_exist_although_no_teacher_has_it():
    sections: dict[str, Any] = {"model": {"name": "resnet19", "depth": None, "width": None},
                                "teacher": {"backbones": ["convnet"]}}  # fmt: skip
    planning.check(tiny_config(**sections), SPEC)
    with pytest.raises(ModelError, match="resnet19"):
        planning.check(tiny_config(**sections, baselines=["fedavg"]), SPEC)


def test_terms_for_a_method_without_an_optimisation_are_refused(pairs: Config):
    with_term = tiny_config(
        distill={"regularizers": [{"name": "total_variation", "weight": 1.0}]}
    ).distill.regularizers
    planning.check(tiny_config(distill={"regularizers": []}), SPEC)
    config = replace(pairs, distill=replace(pairs.distill, regularizers=with_term))
    with pytest.raises(ConfigError, match=r"distill\.regularizers is given, and two_by_two"):
        planning.check(config, SPEC)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"norm": "instance"}}, "norm: batch"),
        ({"model": [{"name": "convnet"}, {"name": "convnet", "norm": "instance"}]}, "norm: batch"),
        ({"teacher": {"backbones": [{"name": "convnet", "norm": "instance"}]}}, "norm: batch"),
        ({"teacher": {"backbones": [{"name": "resnet19"}]}}, "resnet19"),
        ({"student": {"models": ["resnet19"]}}, "resnet19"),
        ({"student": {"models": [{"name": "convnet", "depth": 9}]}}, "depth"),
    ],
    ids=str,
)
def test_networks_that_do_not_fit_are_refused(sections: dict[str, Any], says: str):
    with pytest.raises(ModelError, match=says):
        planning.check(tiny_config(**sections), SPEC)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("convnet", {"network": "proxy", "model": "resnet19"}, "resnet19"),
        ("convnet", {"network": "proxy", "model": "alexnet"}, "alexnet"),
        ("squeezenet1_0", {}, "no linear layer"),
    ],
    ids=str,
)
def test_networks_that_a_term_cannot_ask_are_refused(
    model: str, options: dict[str, Any], says: str
):
    term = {"name": "cmi", "weight": 1.0, **options}
    tree: dict[str, Any] = {"distill": {"name": "gvbsm", "regularizers": [term]}}
    spec = tiny_spec(channels=3, size=32 if model == "squeezenet1_0" else 8)
    config = tiny_config(**tree)
    config = replace(config, model=ModelConfig(name=model))
    with pytest.raises(ModelError, match=rf"distill\.regularizers.* cmi: .*{says}"):
        planning.check(config, spec)


@pytest.mark.parametrize("tiles", [3, 5, 16])
def test_tiles_that_do_not_fill_the_images_are_refused(tiles: int):
    config = tiny_config(relabel={"tiles": tiles, "tile_share": 0.5})
    with pytest.raises(ConfigError, match=rf"relabel\.tiles is {tiles}.*8.*accepted: .*2, 4"):
        planning.check(config, SPEC)
    planning.check(tiny_config(relabel={"tiles": 4, "tile_share": 0.5}), SPEC)


def test_a_client_makes_no_more_than_its_images_allow(pairs: Config):
    plan = planning.allocate(pairs, SPEC, {0: [9, 2, 5], 1: [4, 8, 0]}, [5, 5, 2])
    assert plan == {0: [3, 1, 2], 1: [2, 4, 0]}


def test_a_method_that_needs_none_makes_any_number_of_any_class():
    plan = planning.allocate(tiny_config(), SPEC, {0: [1, 1, 1], 1: [0, 0, 1]}, [9, 9, 2])
    assert [sum(column) for column in zip(*plan.values(), strict=True)] == [9, 9, 2]


def test_too_few_real_images_are_counted_for_the_scarcest_class(pairs: Config):
    held = {0: [9, 7, 20], 1: [5, 3, 20]}  # enough for 6, 4 and 20
    with pytest.raises(PartitionError) as raised:
        planning.allocate(pairs, SPEC, held, [7, 7, 7])
    message = str(raised.value)
    for part in (
        "distill.ipc asks for 7 images of class 'class 1'",
        "two_by_two makes each from 2 real image(s)",
        "the clients hold enough for 4; accepted: up to 4,",
    ):
        assert part in message
    planning.allocate(pairs, SPEC, held, [4, 4, 4])


def test_single_images_on_many_clients_make_no_pair(pairs: Config):
    with pytest.raises(PartitionError) as raised:
        planning.allocate(pairs, SPEC, {n: [1, 2, 2] for n in range(5)}, [1, 1, 1])
    assert "hold enough for 0; accepted: more images of the class" in str(raised.value)


@pytest.mark.parametrize("method", ["pairs", "sre2l"])
def test_a_class_that_nobody_holds_is_named(pairs: Config, method: str):
    config = pairs if method == "pairs" else tiny_config()
    with pytest.raises(PartitionError, match="class 'class 2' is held by no client"):
        planning.allocate(config, SPEC, {0: [9, 9, 0], 1: [9, 9, 0]}, [1, 1, 1])


def test_images_that_are_used_up_are_not_used_again(pairs: Config):
    held = {0: [8, 8, 8], 1: [8, 8, 8]}
    made = {0: [4, 1, 0], 1: [1, 2, 0]}
    more = planning.allocate(pairs, SPEC, held, [2, 3, 0], made)
    assert more == {0: [0, 2, 0], 1: [2, 1, 0]}
    whole = slots.add(made, more)
    assert all(2 * n <= 8 for counts in whole.values() for n in counts)


def test_a_shortage_in_a_repair_is_told_for_the_whole_set(pairs: Config):
    held, made = {0: [8, 4, 8], 1: [8, 4, 8]}, {0: [2, 2, 2], 1: [2, 2, 2]}
    with pytest.raises(PartitionError) as raised:
        planning.allocate(pairs, SPEC, held, [2, 2, 2], made)
    message = str(raised.value)
    assert "asks for 6 images of class 'class 1'" in message
    assert "hold enough for 4; accepted: up to 4," in message


def test_every_size_has_a_plan_of_its_own(pairs: Config):
    config = replace(pairs, distill=replace(pairs.distill, ipc=(3, 1)))
    held = {0: [4, 8, 8], 1: [4, 8, 8]}
    found = planning.plans(config, SPEC, held)
    assert list(found) == [3, 1]
    for ipc, plan in found.items():
        assert [sum(column) for column in zip(*plan.values(), strict=True)] == [ipc] * 3
    with pytest.raises(PartitionError, match="accepted: up to 4,"):
        planning.plans(replace(config, distill=replace(config.distill, ipc=(3, 5))), SPEC, held)
