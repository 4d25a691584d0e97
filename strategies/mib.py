"""MixtureBottleneck: sets of several sizes are trained together before they are labelled.

MIB co-training (`fedistill/cotrain.py`) on top of Distributed Boosting. `cotrain: {name: mib}`
chooses it, with any `relabel.name`.
"""

from fedistill import cotrain, registry
from fedistill.sets import SyntheticSet
from strategies.distributed_boosting import DistributedBoosting


class MixtureBottleneck(DistributedBoosting):
    """Unite the shares; let the sets of all sizes guide each other; label them."""

    def combine(self, sets: dict[int, SyntheticSet]) -> dict[int, SyntheticSet]:
        """Train the sets again, all sizes side by side."""
        section = self.config.cotrain
        assert section is not None
        trained, curves = cotrain.cotrain(
            registry.build("cotrain", section.name, section.options),
            sets,
            list(self.shares.values()),
            self.teachers,
            seed=self.config.seed,
            device=self.device,
            report=lambda done, total: self.report("cotrain", done, total, ""),
            left_out=self.unheard.note,
        )
        self.curves.update(curves)
        return trained
