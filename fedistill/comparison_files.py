"""Placeholder."""

from pathlib import Path


def write(folder: Path) -> list[Path]:
    """Write nothing."""
    return []
