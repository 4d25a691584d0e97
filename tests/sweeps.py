"""What tests of sweeps share: a small grid, and what a sweep has found."""

from pathlib import Path
from typing import Any

from fedistill import comparison
from fedistill.config import SweepConfig

AXES = SweepConfig(clients=(1, 2), ipc=(1, 2), seed=(0, 1))


def hashes(folder: Path) -> dict[str, str]:
    return {
        f"{row.folder.name}/{row.line.ipc}": row.result["sets"][str(row.line.ipc)]["sha256"]
        for row in comparison.rows(folder)
    }


def numbers(folder: Path) -> list[tuple[Any, ...]]:
    return [(row.line, row.clients, row.seed, row.top1) for row in comparison.rows(folder)]
