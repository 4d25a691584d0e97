"""The rows beside a distilled set: what they are called in result.json, and for people."""

from collections.abc import Sequence

from fedistill.config import Config

_FEDAVG = "fedavg_"
_TITLES = {
    "random": "random real images, same labels",
    "herding": "real images by herding, same labels",
    "k_center": "real images by k-center, same labels",
    "hard_label": "same images, hard labels",
    "ensemble": "teacher ensemble (no set)",
    "coverage_ensemble": "teacher ensemble by class coverage (no set)",
    "consensus_ensemble": "teacher ensemble by consensus (no set)",
    "weight_average": "average of the teachers' weights",
    "full_data": "all real data",
}
_SHORT = {  # for charts on a phone, where the title is too long or not plain enough
    "random": "random real images",
    "herding": "real, by herding",
    "k_center": "real, by k-center",
    "hard_label": "hard labels",
    "ensemble": "teachers' ensemble",
    "coverage_ensemble": "ensemble by coverage",
    "consensus_ensemble": "teachers' consensus",
    "weight_average": "average of weights",
    "full_data": "all real data",
}


def fedavg(server_round: int) -> str:
    """Name the row of FedAvg after so many rounds."""
    return f"{_FEDAVG}{server_round}"


def names(config: Config) -> list[str]:
    """List the rows of a config in its order."""
    return listed(config.baselines, config.fedavg.rounds)


def listed(baselines: Sequence[str], rounds: int) -> list[str]:
    """List rows by what they are called in a result: `fedavg` has its first and last round's."""
    found: list[str] = []
    for name in baselines:
        after = sorted({1, rounds})
        found += [fedavg(number) for number in after] if name == "fedavg" else [name]
    return found


def title(name: str) -> str:
    """Say what a row is."""
    return _TITLES.get(name, short(name))


def short(name: str) -> str:
    """Say what a row is where there is little room."""
    if name.startswith(_FEDAVG):
        rounds = name.removeprefix(_FEDAVG)
        return f"FedAvg, {rounds} round{'' if rounds == '1' else 's'}"
    return _SHORT.get(name, name.replace("_", " "))


def tested_on(split: str) -> str:
    """Say what a result's `evaluated_on` means."""
    return "the devices' own images" if split == "clients" else f"the whole {split} split"
