"""Use a distilled set without the federation that made it: train fresh students and test them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedistill import config_file, data
from fedistill.config import Config
from fedistill.display import ProgressDisplay
from fedistill.errors import DataError
from fedistill.evaluation import Evaluator
from fedistill.models import build
from fedistill.progress import Progress
from fedistill.sets import SyntheticSet
from fedistill.student import Score
from fedistill.training import device_for, resolve_precision


def train(
    folder: Path,
    data_name: str,
    *,
    models: Sequence[str],
    seeds: int,
    protocol: str | None,
    epochs: int | None,
) -> dict[str, Score]:
    """Train students on a set and test them on a data set.

    Args:
        folder: of the set.
        data_name: as `data.name` in a config; only its test split is used.
        models: names; empty: those of the set's recipe, else convnet.
        seeds: students of each model.
        protocol: of the students; None: as in the set's recipe.
        epochs: of each student; None: as the protocol says.

    Raises:
        SetError: the folder is not a distilled set.
        DataError: the set was not made from these classes, or images of another shape.
    """
    synthetic = SyntheticSet.load(folder)
    config = _config(synthetic, data_name, list(models), seeds, protocol, epochs)
    loaded = data.load(config.data, config.seed)
    _check_fit(synthetic, loaded, config, folder)
    device = device_for(1.0)
    evaluator = Evaluator(
        config=config,
        spec=synthetic.spec,
        test=loaded.test,
        device=device,
        dtype=resolve_precision(config.precision, device),
    )
    with tempfile.TemporaryDirectory(prefix="fedistill-") as scratch:
        path = Path(scratch) / "progress.jsonl"
        progress = Progress("students", path)
        with ProgressDisplay(path):
            found = evaluator.score(
                evaluator.students(synthetic),
                lambda done, total: progress.report("evaluate", done, total),
            )
            return dict(found)


def _config(
    synthetic: SyntheticSet,
    data_name: str,
    models: list[str],
    seeds: int,
    protocol: str | None,
    epochs: int | None,
) -> Config:
    """Make the config of the students from the recipe in the card and the user's wishes."""
    recipe = synthetic.card.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    made_with = dict(recipe.get("student", {}))
    student = {"protocol": protocol} if protocol else made_with
    wishes = {"models": models or made_with.get("models"), "epochs": epochs, "seeds": seeds}
    student |= {key: value for key, value in wishes.items() if value}
    size = recipe.get("data", {}).get("size")
    kept = {key: recipe[key] for key in ("seed", "precision", "model") if key in recipe}
    return config_file.from_dict(
        {**kept, "data": {"name": data_name, "size": size}, "student": student}
    )


def _check_fit(synthetic: SyntheticSet, loaded: data.Data, config: Config, folder: Path) -> None:
    made, given = synthetic.spec, loaded.spec
    if made.class_names != given.class_names:
        raise DataError(
            f"{folder} was made from the classes {list(made.class_names)[:10]}, the data set "
            f"'{config.data.name}' has {list(given.class_names)[:10]}; test on the data set that "
            "the set stands for"
        )
    if (made.channels, made.size) != (given.channels, given.size):
        raise DataError(
            f"{folder} has images of {made.channels} x {made.size} x {made.size}, the data set "
            f"'{config.data.name}' of {given.channels} x {given.size} x {given.size}; test on "
            "the data set that the set stands for"
        )
    for model in config.student.networks:
        build(model, made, config.seed, "check")
