"""EDC's ladder in experiments/: seven configs, each one step above the one before."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedistill import config_file

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "configs" / "edc_ladder"
LADDER = sorted(FOLDER.glob("*.yaml"))

# EDC's CONFIG A to G: what each step adds to the one before.
STEPS = {
    "b": {"distill.init", "distill.iterations"},
    "c": {"student.schedule", "student.zeta"},
    "d": {"distill.flatness_weight"},
    "e": {"student.batch_size", "teacher.backbones"},
    "f": {"distill.alpha"},
    "g": {"distill.crop", "relabel.scale", "student.ema"},
}


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def test_the_ladder_of_edc_climbs_one_step_at_a_time():
    assert [path.stem for path in LADDER] == ["a", *STEPS]
    trees = {
        path.stem: dict(leaves(config_file.to_dict(config_file.load(path)))) for path in LADDER
    }
    for (_, lower), (name, upper) in pairwise(trees.items()):
        assert lower.keys() == upper.keys()
        changed = {key for key in lower if lower[key] != upper[key]}
        assert changed == STEPS[name] | {"name"}, name


def test_the_ladder_starts_at_gvbsm_and_ends_at_edc():
    first, last = (config_file.load(path) for path in (LADDER[0], LADDER[-1]))
    gvbsm, edc = first.distill.options, last.distill.options
    assert (gvbsm["alpha"], gvbsm["flatness_weight"], gvbsm["init"]) == (1.0, 0.0, "noise")
    assert (edc["alpha"], edc["flatness_weight"], edc["init"]) == (0.5, 0.25, "real")
    assert {config.partition.clients for config in (first, last)} == {1}
    assert {config.data.name for config in (first, last)} == {"cifar10"}
