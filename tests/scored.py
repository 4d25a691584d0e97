"""What tests of scores share: two clients with teachers, and the scores of a small set."""

from typing import Any

import torch
from fakes import CONVNET, CPU, tiny_config, tiny_images, tiny_set, tiny_spec, tiny_teacher

from fedistill import scoring
from fedistill.config import Config, RelabelConfig
from fedistill.evaluation import Evaluator
from fedistill.relabel import relabel
from fedistill.scoring import Scores
from fedistill.sets import SyntheticSet

SPEC = tiny_spec()
TRAIN = tiny_images(8)  # 24 images, class by class in turn
TEST = tiny_images(5, seed=9)
SHARDS = [torch.arange(0, 9), torch.arange(9, 24)]  # 3 and 5 images of every class
HELD = {
    client: TRAIN.select(index).histogram(SPEC.num_classes) for client, index in enumerate(SHARDS)
}
TEACHERS = {client: tiny_teacher(client) for client in range(2)}
MODEL = CONVNET


def config(*rows: str, **student: Any) -> Config:
    recipe = {"epochs": 1, "seeds": 2, "models": [{"name": "convnet", "depth": 2, "width": 8}]}
    return tiny_config(baselines=list(rows), student={**recipe, **student})


def refined(synthetic: SyntheticSet, views: RelabelConfig) -> SyntheticSet:
    return relabel(synthetic, TEACHERS, views, seed=0, device=CPU, dtype=torch.float32)


def evaluator(settings: Config) -> Evaluator:
    return Evaluator(config=settings, spec=SPEC, test=TEST, device=CPU, dtype=torch.float32)


def scored(settings: Config, *sizes: int) -> dict[int, Scores]:
    sets = {ipc: refined(tiny_set(ipc), settings.relabel) for ipc in sizes or (2,)}
    judge = evaluator(settings)
    answers = judge.answers(TEACHERS)
    return dict(scoring.score_all(judge, sets, TRAIN, SHARDS, HELD, TEACHERS, answers, refined))
