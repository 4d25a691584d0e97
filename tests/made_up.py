"""Folders of runs and sweeps with made-up numbers: what a report reads, without the work."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fakes import tiny_tree

from fedistill import config_file

Top1 = Callable[[int, int, int], Sequence[float]]  # of IPC, clients and seed

# One grey pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)


def scores(*top1: float) -> dict[str, Any]:
    """What result.json says about students."""
    mean = sum(top1) / len(top1)
    std = (sum((it - mean) ** 2 for it in top1) / max(1, len(top1) - 1)) ** 0.5
    return {"top1": [*top1], "top1_mean": mean, "top1_std": std, "n": len(top1)}


def made_up(ipc: int, clients: int, seed: int) -> list[float]:
    """Accuracies that no run would give: 11.00 + N + IPC / 100, and a little for the seed."""
    first = 11.0 + clients + ipc / 100 + seed / 10
    return [first, first + 0.5]


def run_folder(
    folder: Path,
    *,
    clients: int = 2,
    seed: int = 0,
    ipc: Sequence[int] = (1, 10),
    top1: Top1 = made_up,
    teachers: float | None = 88.125,
    sections: Mapping[str, Any] | None = None,
    baselines: Mapping[str, Any] | None = None,
    histograms: Sequence[Sequence[int]] | None = None,
    traffic: Callable[[int], Mapping[str, int]] | None = None,
    **result: Any,
) -> Path:
    """Write the files of a run that has finished.

    Args:
        folder: to write to.
        clients: of the federation.
        seed: of the federation.
        ipc: sizes of its sets.
        top1: accuracies of the students.
        teachers: accuracy of every client's teacher; None: they were not tested.
        sections: of the config, that differ from `tiny_tree`.
        baselines: scores of the rows beside, by name; None: random and ensemble.
        histograms: images of each client and class.
        traffic: bytes up and down for the set of an IPC alone; None: not told apart.
        result: other keys of result.json.
    """
    tree = tiny_tree(**(sections or {}))
    tree["seed"] = seed
    tree["partition"] = {**tree["partition"], "clients": clients}
    tree["distill"] = {**tree["distill"], "ipc": [*ipc]}
    config = config_file.from_dict(tree)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_file.dump(config))
    held = histograms or [[7, 6, 7] for _ in range(clients)]
    (folder / "partition.json").write_text(json.dumps({"histograms": held}))
    (folder / "figures").mkdir()
    for name in (
        "partition",
        *(f"{kind}_ipc-{size}" for size in ipc for kind in ("set", "features")),
    ):
        (folder / "figures" / f"{name}.png").write_bytes(PNG)
    beside = {"random": scores(10.25, 10.75), "ensemble": scores(89.5)}
    way = {"up": 1000 * clients, "down": 100 * clients}
    one = {"up": 1000, "down": 100, "stages": {"train.distill": {"up": 1000, "down": 100}}}
    tested = [teachers] * clients
    model = config.student.networks[0].name
    tree = {
        "name": config.name,
        "seed": seed,
        "config_sha256": config_file.sha256(config),
        "hardware": {"cpu": "abacus", "cores": 3, "gpu": None},
        "versions": {"fedistill": "0.0.7"},
        "clients": clients,
        "evaluated_on": "test",
        "teachers": {"top1": tested, "top1_mean": teachers},
        "sets": {
            str(size): {
                "sha256": f"{size:064x}",
                "images": 3 * size,
                "bytes": {"images": 200 * size, "labels": 300 * size},
                **({"traffic": traffic(size)} if traffic else {}),
                "students": {model: scores(*top1(size, clients, seed))},
                "baselines": beside if baselines is None else dict(baselines),
            }
            for size in ipc
        },
        "bytes": {**way, "per_client": {str(n): one for n in range(clients)}},
        "absent_clients": [],
        "seconds": {"squeeze": 4.5, "recover": 5.5, "total": 297.0},
        "from_store": {},
        "uses_real_images": False,
        "mlflow": {"tracking_uri": None, "experiment_id": None, "run_id": None},
        **result,
    }
    (folder / "result.json").write_text(json.dumps(tree))
    return folder


def sweep_folder(
    folder: Path,
    *,
    clients: Sequence[int] = (1, 2, 3),
    ipc: Sequence[int] = (1, 10),
    seeds: Sequence[int] = (0, 1),
    alphas: Sequence[float | None] = (None,),
    distillers: Sequence[str] = ("sre2l",),
    failed: Mapping[tuple[int, int], str] | None = None,
    name: str = "made up",
    **run: Any,
) -> Path:
    """Write the files of a sweep.

    Args:
        folder: to write to.
        clients: axis.
        ipc: axis.
        seeds: axis.
        alphas: axis.
        distillers: axis.
        failed: why federations of (clients, seed) failed.
        name: of the sweep.
        run: as for `run_folder`.
    """
    folder.mkdir(parents=True)
    sections = run.pop("sections", None) or {}
    runs: list[dict[str, Any]] = []
    for distiller in distillers:
        for alpha in alphas:
            own = {} if alpha is None else {"name": "dirichlet", "alpha": alpha}
            split = {**sections, "partition": {**sections.get("partition", {}), **own}}
            for n in clients:
                for seed in seeds:
                    place = f"runs/{distiller}_alpha-{alpha}_clients-{n:02d}_seed-{seed}"
                    why = (failed or {}).get((n, seed))
                    if why is None:
                        run_folder(
                            folder / place, clients=n, seed=seed, ipc=ipc, sections=split, **run
                        )
                    else:
                        (folder / place).mkdir(parents=True)
                        failure = {"error": "Oh", "user_error": False, "message": why}
                        (folder / place / "failure.json").write_text(json.dumps(failure))
                    runs.append(
                        {
                            "folder": place,
                            "clients": n,
                            "alpha": alpha,
                            "distiller": distiller,
                            "seed": seed,
                        }
                    )
    state = {
        "sweep_id": "3f9c",
        "name": name,
        "command": ["fedistill", "sweep", "my config.yaml", "--clients", "1,2,3"],
        "axes": {
            "clients": [*clients],
            "ipc": [*ipc],
            "alpha": [*alphas],
            "distiller": [*distillers],
            "seed": [*seeds],
        },
        "created": "2026-11-21 20:00:00",
        "seconds": 600.0,
        "runs": runs,
    }
    (folder / "sweep.json").write_text(json.dumps(state))
    (folder / "config.yaml").write_text("name: made up\n")
    return folder
