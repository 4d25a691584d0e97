"""Integrate: the union of the shares, each image labelled by the client that made it.

The control of Distributed Boosting (its D-SRe2L and D-APM rows): data parallel distillation
without mixing labels. `relabel.name: own` chooses it.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from fedistill.config import RelabelConfig
from fedistill.relabel import collect, relabel
from fedistill.sets import SyntheticSet
from strategies.base import FedDistill


class Integrate(FedDistill):
    """Unite the shares; ask each image's own teacher for its soft labels.

    Attributes:
        labels: the values of `relabel.name` that choose this strategy.
    """

    labels: ClassVar[tuple[str, ...]] = ("own",)

    def refine(
        self,
        synthetic: SyntheticSet,
        views: RelabelConfig,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> SyntheticSet:
        """Label random views of every image, as `relabel` says."""
        if self.at_home is not None:
            return collect(
                synthetic,
                self.at_home.left,
                views,
                partial(self.at_home.ask, report=report),
                seed=self.config.seed,
                histograms=self.histograms,
            )
        return relabel(
            synthetic,
            self.teachers,
            views,
            seed=self.config.seed,
            device=self.device,
            dtype=self.dtype,
            histograms=self.histograms,
            report=report,
            left_out=self.unheard.note,
        )
