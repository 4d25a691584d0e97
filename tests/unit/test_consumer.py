"""What `fedistill train` takes from a set, and what from the user."""

import pytest
from fakes import tiny_set

from fedistill import consumer
from fedistill.config import Config

STUDENT = {"models": [{"name": "convnet", "width": 8}, "resnet18"], "epochs": 7, "loss": "kl"}
MADE = tiny_set().with_card(recipe={"seed": 3, "student": STUDENT})


def asked(models: list[str], protocol: str | None, epochs: int | None) -> Config:
    return consumer._config(MADE, "digits", models, 2, protocol, epochs)


@pytest.mark.parametrize("protocol", [None, "rded"])
def test_the_models_of_the_recipe_are_trained_under_any_protocol(protocol: str | None):
    models = asked([], protocol, None).student.networks
    assert [(model.name, model.width) for model in models] == [("convnet", 8), ("resnet18", None)]


def test_the_users_wishes_come_first():
    student = asked(["mobilenet_v2"], None, 5).student
    assert [model.name for model in student.networks] == ["mobilenet_v2"]
    assert (student.epochs, student.seeds, student.loss) == (5, 2, "kl")


def test_a_protocol_replaces_the_recipe_of_the_set():
    student = asked([], "edc", None).student
    assert (student.epochs, student.loss, student.seeds) == (1000, "mse", 2)
