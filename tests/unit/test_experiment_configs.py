"""The configs of experiments/: all of them are accepted, and fit what their method makes."""

from pathlib import Path

import pytest

from fedistill import config_file, planning
from fedistill.distillers.condensation import Condensation
from fedistill.distillers.mdc import MDC

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[str(it.relative_to(FOLDER)) for it in CONFIGS])
def test_networks_that_see_enlarged_tiles_have_no_statistics_of_sharp_images(path: Path):
    config = config_file.load(path)
    distiller = planning.distiller_of(config)
    if not isinstance(distiller, Condensation) or distiller.tiles == 1:
        return
    networks = [*config.teacher_models, *config.student.networks]
    assert {network.norm for network in networks} == {"instance"}


def test_subsets_of_mdc_are_chosen_more_often_than_once():
    found = [planning.distiller_of(config_file.load(path)) for path in CONFIGS]
    parts = [part for part in found if isinstance(part, MDC)]
    assert parts
    assert all(part.iterations // part.review >= 20 for part in parts)


def test_there_are_configs():
    assert len(CONFIGS) > 40
