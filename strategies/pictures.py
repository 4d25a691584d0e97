"""The figures of a run: drawn, saved and noted in the journal, and none of them worth a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.common import log
from torch import nn

from fedistill import figures, planning
from fedistill.config import Config
from fedistill.data import Data
from fedistill.embedding import embed
from fedistill.sets import SyntheticSet
from fedistill.shares import Curve, Share
from fedistill.tracking import Journal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pictures:
    """Draws what a run has to show.

    Args:
        folder: where the figures are kept.
        journal: through which MLflow gets them.
    """

    folder: Path
    journal: Journal

    def draw(self, name: str, make: Callable[[], "Figure"]) -> None:
        """Make a figure and keep it; one that fails leaves a warning."""
        path = self.folder / f"{name}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            make().savefig(path, dpi=130)
        except Exception as error:  # a picture is not worth a run
            log(WARNING, "figure %s was not drawn: %s", name, error)
        else:
            self.journal.artifact(path, "figures")

    def losses(self, shares: Mapping[int, Share]) -> None:
        """Draw the clients' losses over their work."""
        for title, x_label, field in (
            ("Squeeze: loss of each client's teacher", "epoch", "teacher_curve"),
            ("Recover: loss of each client's first batch", "iteration", "recover_curve"),
        ):
            curves = {f"client {n}": getattr(share, field) for n, share in sorted(shares.items())}
            if any(curves.values()):  # who chooses real images has no loss
                name = title.split(":")[0].lower() + "_loss"
                self.draw(name, partial(figures.loss_curves, curves, title, x_label))

    def sizes(self, stage: str, curves: Mapping[str, Curve], who: str) -> None:
        """Draw how sets of several sizes fared that were trained together, if there are any.

        Args:
            stage: recover or cotrain.
            curves: named matching/..., and information/... or likeness/...
            who: has trained them.
        """
        matching = partial(figures.loss_curves, title=f"{who}: loss of each set's matching")
        information = partial(
            figures.value_curves,
            title=f"{who}: mutual information between outputs",
            y_label="nats",
        )
        likeness = partial(
            figures.value_curves,
            title=f"{who}: squared distance between mean features",
            y_label="share of their length",
        )
        for kind, drawn in (
            ("matching", matching),
            ("information", information),
            ("likeness", likeness),
        ):
            own = {
                name.removeprefix(f"{kind}/"): curve
                for name, curve in curves.items()
                if name.startswith(f"{kind}/")
            }
            if own:
                self.draw(f"{stage}_{kind}", partial(drawn, own, x_label="step"))

    def feature_map(
        self, config: Config, data: Data, synthetic: SyntheticSet, network: nn.Module, ipc: int
    ) -> None:
        """Draw where a student sees a set among real test images, if there are any here."""
        if not len(data.test):
            return

        def make() -> "Figure":
            tiles = planning.distiller_of(config).mosaic_tiles
            found = embed(network, synthetic, data.test, tiles, config.seed)
            title = f"{data.spec.name}, IPC {ipc}: a student's features (stars: synthetic), t-SNE"
            return figures.feature_map(found, data.spec.class_names, title)

        self.draw(f"features_ipc-{ipc}", make)
