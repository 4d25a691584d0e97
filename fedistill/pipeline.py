"""The whole method on one page: config to distilled sets and their scores, without Flower.

    data -> partition -> [each client: squeeze -> recover]
         -> integrate (-> co-train the sizes) -> mix-relabel -> students

The apps in `client_app.py` and `strategies/` call the same functions with messages in between;
the sets have the same SHA-256. It needs torch alone, so it also runs where Flower is not
installed: `python -m fedistill.pipeline CONFIG` (pyyaml and pydantic to read the file;
scikit-learn for the methods that cluster). The row `fedavg` is Flower's own, and left out.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from fedistill import config_file, data, partition, planning, registry, scoring
from fedistill.client import make_share
from fedistill.config import Config, RelabelConfig
from fedistill.cores import set_threads
from fedistill.cotrain import cotrain
from fedistill.evaluation import Evaluator
from fedistill.relabel import relabel
from fedistill.scoring import Scores
from fedistill.sets import SyntheticSet
from fedistill.shares import integrate
from fedistill.store import Store
from fedistill.training import device_for, resolve_precision
from fedistill.worker import restore_teachers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One distilled set and what it is worth."""

    synthetic: SyntheticSet
    scores: Scores


def run(config: Config) -> dict[int, Outcome]:
    """Run an experiment in this process, one client after the other.

    Returns:
        For each IPC, the relabelled set and its scores.
    """
    loaded = data.load(config.data, config.seed)
    spec = loaded.spec
    planning.check(config, spec)
    if "fedavg" in config.baselines:
        _log.warning("the row 'fedavg' is left out: it is Flower's; `fedistill run` has it")
    parts = partition.split(loaded.train.labels, spec.num_classes, config.partition, config.seed)

    histograms = dict(enumerate(parts.histograms(loaded.train.labels, spec.num_classes)))
    plans = planning.plans(config, spec, histograms)
    wanted = planning.requests(config, plans)
    shares = [
        make_share(config, spec, loaded.train.select(index), wanted[number], partition_id=number)
        for number, index in enumerate(parts.indices)
    ]

    set_threads()
    device = device_for(1.0)
    dtype = resolve_precision(config.precision, device)
    teachers = {
        share.partition_id: restore_teachers(config, spec, share.partition_id, share.teachers).to(
            device
        )
        for share in shares
    }

    def refine(synthetic: SyntheticSet, views: RelabelConfig) -> SyntheticSet:
        # All teachers are in this process: `relabel.at` makes no difference here.
        return relabel(
            synthetic,
            teachers,
            views,
            seed=config.seed,
            device=device,
            dtype=dtype,
            histograms=histograms,
        )

    united = {
        ipc: integrate(shares, plan, spec, planning.row(config, ipc)) for ipc, plan in plans.items()
    }
    if config.cotrain is not None:
        options = registry.build("cotrain", config.cotrain.name, config.cotrain.options)
        united, _ = cotrain(options, united, shares, teachers, seed=config.seed, device=device)
    sets = {ipc: refine(synthetic, config.relabel) for ipc, synthetic in united.items()}
    # The test images are in this process too: nor does `evaluate.at`.
    evaluator = Evaluator(
        config=config,
        spec=spec,
        test=loaded.test,
        device=device,
        dtype=dtype,
        store=Store.from_environment(),
    )
    answers = evaluator.answers(teachers)
    scores = scoring.score_all(
        evaluator, sets, loaded.train, parts.indices, histograms, teachers, answers, refine
    )
    return {ipc: Outcome(sets[ipc], found) for ipc, found in scores}


if __name__ == "__main__":
    for size, outcome in run(config_file.load(Path(sys.argv[1]), sys.argv[2:])).items():
        print(f"IPC {size}: {outcome.synthetic.sha256[:12]} {outcome.scores.as_dict()}")
