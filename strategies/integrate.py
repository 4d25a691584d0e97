"""Integrate: the union of the shares, each image labelled by the client that made it.

The control of Distributed Boosting (its D-SRe2L and D-APM rows): data parallel distillation
without mixing labels.
"""

from dataclasses import replace

from fedistill.relabel import relabel
from fedistill.sets import SyntheticSet
from strategies.base import FedDistill


class Integrate(FedDistill):
    """Unite the shares; ask each image's own teacher for its soft labels."""

    labeller: str | None = "own"

    def refine(self, synthetic: SyntheticSet) -> SyntheticSet:
        """Label random views of every image."""
        config = self.config.relabel
        return relabel(
            synthetic,
            self.teachers,
            replace(config, name=self.labeller) if self.labeller else config,  # type: ignore[arg-type]
            seed=self.config.seed,
            device=self.device,
            dtype=self.dtype,
            report=lambda done, total: self.report("relabel", done, total, ""),
        )
