"""What the paper on Distributed Boosting measured for every number of clients.

Source: X. Chen, W. Meng, P. Wang, Q. Zhou, "Distributed Boosting: An Enhancing Method on Dataset
Distillation", CIKM 2024, doi:10.1145/3627673.3679897: DB-SRe2L with ResNet-18, Tables 3 and 5.
N = 1 is SRe2L itself. The paper chose N on the test split.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAPER = "Distributed Boosting (CIKM 2024)"
DOI = "doi:10.1145/3627673.3679897"

# Top-1 in percent for 1, 2, ... clients, by IPC; then the mean of the clients' teachers.
_CIFAR10 = {
    5: (23.1, 25.1, 27.6, 27.1, 27.9, 27.0, 30.5, 28.3, 27.1, 32.4, 27.7, 27.7, 30.3, 33.5, 39.4),
    10: (27.2, 29.7, 36.1, 37.9, 36.3, 42.6, 48.1, 42.2, 45.9, 45.8, 47.7, 46.3, 44.8, 47.9, 54.1),
    20: (34.1, 43.8, 50.9, 49.4, 52.9, 60.3, 62.3, 62.3, 64.6, 64.2, 58.3, 61.2, 65.1, 63.3, 64.7),
    30: (40.5, 46.9, 60.1, 56.4, 62.4, 68.2, 69.0, 66.5, 69.8, 68.2, 65.0, 67.2, 70.0, 69.4, 68.2),
    40: (44.3, 54.9, 62.4, 63.2, 67.0, 70.9, 72.4, 72.6, 72.9, 70.1, 67.5, 69.8, 72.0, 71.0, 68.9),
    50: (47.5, 55.6, 65.7, 64.8, 72.5, 73.3, 73.7, 73.6, 73.3, 71.5, 67.8, 70.6, 72.9, 71.2, 70.0),
    100: (59.1, 71.3, 79.1, 79.6, 80.6, 78.1, 78.1, 78.0, 76.3, 74.2, 75.0, 73.6, 74.2, 73.3, 70.7),
    150: (67.2, 77.9, 80.8, 82.2, 82.6, 78.4, 77.0, 79.6, 77.1, 74.0, 71.0, 74.4, 75.2, 74.1, 71.6),
    200: (76.6, 81.4, 82.1, 83.9, 83.8, 78.9, 77.3, 79.6, 78.3, 74.2, 71.6, 75.4, 75.5, 74.3, 71.7),
}  # fmt: skip
_CIFAR10_TEACHERS = (
    94.8, 91.6, 87.9, 88.7, 85.7, 83.1, 82.4, 80.4, 77.8, 76.7, 76.3, 76.3, 76.2, 75.3, 73.5,
)  # fmt: skip
_CIFAR100 = {
    1: (2.0, 13.3, 13.8, 14.7, 15.1, 17.0, 14.5, 16.5, 16.8, 18.7),
    5: (24.8, 29.7, 34.3, 35.8, 37.0, 37.1, 34.3, 31.1, 33.9, 34.7),
    10: (31.6, 41.3, 43.3, 44.7, 43.5, 41.6, 39.3, 37.3, 37.2, 38.7),
    20: (47.9, 50.5, 52.5, 50.1, 49.2, 47.3, 44.8, 41.3, 39.8, 42.5),
    50: (56.2, 57.6, 57.4, 54.0, 51.7, 49.5, 46.8, 43.4, 40.9, 44.2),
}  # fmt: skip
_CIFAR100_TEACHERS = (76.5, 67.8, 64.3, 59.6, 56.6, 53.1, 48.6, 46.5, 45.7, 42.2)


@dataclass(frozen=True)
class Published:
    """A table of the paper.

    Attributes:
        name: of the table.
        num_classes: of the data set; both have 50,000 training images.
        rows: accuracy for 1, 2, ... clients in percent, by IPC.
        teachers: mean accuracy of the clients' teachers, for 1, 2, ... clients.
    """

    name: str
    num_classes: int
    rows: Mapping[int, Sequence[float]]
    teachers: Sequence[float]

    def top1(self, ipc: int, clients: int) -> float | None:
        """Return a cell; None where the paper has none."""
        row = self.rows.get(ipc, ())
        return row[clients - 1] if clients <= len(row) else None


TABLES: Mapping[str, Published] = {
    "cifar10": Published("Table 3, CIFAR-10", 10, _CIFAR10, _CIFAR10_TEACHERS),
    "cifar100": Published("Table 5, CIFAR-100", 100, _CIFAR100, _CIFAR100_TEACHERS),
}
_TRAIN_IMAGES = 50_000


def table(config: Mapping[str, Any]) -> Published | None:
    """Return the paper's table of the data set that a config names, if there is one."""
    return TABLES.get(data_name(config))


def data_name(config: Mapping[str, Any]) -> str:
    """Return the last part of `data.name`, as papers are looked up: `cifar10`, `fashionmnist`."""
    name = str(config["data"]["name"]).rstrip("/").rpartition("/")[2]
    return re.sub("[-_]", "", name.lower())


def changed_data(config: Mapping[str, Any]) -> list[str]:
    """Say which options make a config's data others than those a paper names; empty: none."""
    plain = {"fraction": 1.0, "validation": 0.0, "size": None, "zca": False}
    data = {**plain, **config["data"]}  # older configs lack some
    return [f"data.{key} is {data[key]}" for key, value in plain.items() if data[key] != value]


def differences(
    paper: Published, config: Mapping[str, Any], histograms: Sequence[Sequence[int]]
) -> list[str]:
    """Say where a run departs from what a table of the paper is about; empty: nowhere.

    Args:
        paper: the table.
        config: of the run, as the tree of its config.yaml.
        histograms: images of each client and class, of its partition.json.
    """
    clients = config["partition"]["clients"]
    # What an older config lacks was always as the paper has it.
    teachers = {"backbones": (), "count": 1, **config["teacher"]}
    relabel = {"teacher_choice": "uniform", "prior_correction": False, **config["relabel"]}
    distill, dropout = config["distill"], config.get("federation", {}).get("dropout", 0.0)
    student, *_ = config["student"]["models"]
    models = config["model"] if isinstance(config["model"], list) else [config["model"]]
    images, classes = sum(map(sum, histograms)), max(map(len, histograms), default=0)
    facts = {
        f"{images:,} training images of {classes} classes": (images, classes)
        == (_TRAIN_IMAGES, paper.num_classes),
        f"distill.name is {distill['name']}": distill["name"] == "sre2l",
        "distill.regularizers are set": not distill.get("regularizers"),
        "distill.init is real": distill.get("init") != "real",
        "distill.class_bn_weight is set": not distill.get("class_bn_weight"),
        "the teachers are not ResNet-18": [m["name"] for m in models] == ["resnet18"]
        and not teachers["backbones"],
        f"teacher.count is {teachers['count']}": teachers["count"] == 1,
        f"the student is {student['name']}": student["name"] == "resnet18",
        # One client owns all the data and all the labels.
        f"partition.name is {config['partition']['name']}": clients == 1
        or config["partition"]["name"] == "iid",
        f"relabel.name is {relabel['name']}": clients == 1 or relabel["name"] == "mix",
        f"relabel.teacher_choice is {relabel['teacher_choice']}": clients == 1
        or relabel["teacher_choice"] == "uniform",
        "relabel.prior_correction is set": not relabel["prior_correction"],
        f"federation.dropout is {dropout}": not dropout,
        "cotrain is set": config.get("cotrain") is None,
    }
    return changed_data(config) + [fact for fact, same in facts.items() if not same]
