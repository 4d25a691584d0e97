"""Networks: `build` makes one from its config."""

from fedistill.models.build import build

__all__ = ["build"]
