"""What tests of sweeps share: a small grid, and what a sweep has found."""

from pathlib import Path
from typing import Any

from fedistill import comparison, grid, sweep_folder
from fedistill.config import SweepConfig

AXES = SweepConfig(clients=(1, 2), ipc=(1, 2), seed=(0, 1))


def hashes(folder: Path) -> dict[str, str]:
    return {
        f"{row.folder.name}/{row.line.ipc}": row.result["sets"][str(row.line.ipc)]["sha256"]
        for row in comparison.rows(folder)
    }


def numbers(folder: Path) -> list[tuple[Any, ...]]:
    return [(row.line, row.clients, row.seed, row.top1) for row in comparison.rows(folder)]


def grown(output: Path, federations: grid.Grid) -> list[str]:
    """Claim a folder for a command, or for one more; return the names of its methods."""
    output.mkdir(exist_ok=True)
    found = sweep_folder.with_known_names(federations, output)
    sweep_folder.check(found, output)
    sweep_folder.claim(found, output, [it.as_dict() for it in found.federations], [])
    return [it.method for it in found.federations]
