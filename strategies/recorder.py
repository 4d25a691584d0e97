"""Write a run down: journal (and through it MLflow), figures, sets, result.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedistill import (
    config_file,
    figures,
    partition,
    planning,
    results,
    tracking,
    wire,
    wire_labels,
)
from fedistill.config import Config
from fedistill.data import Data
from fedistill.partition import Partition
from fedistill.scoring import Scores
from fedistill.sets import SyntheticSet, add_to_card
from fedistill.tracking import Journal
from strategies.base import FedDistill
from strategies.exchange import Traffic
from strategies.failures import last_line
from strategies.pictures import Pictures


@dataclass(frozen=True)
class Recorder:
    """Knows the places and names under which everything of a run is kept."""

    config: Config
    output: Path
    data: Data
    journal: Journal

    def start(self, tracking_uri: str, source: Mapping[str, str]) -> None:
        """Open the journal with the parameters of the run.

        Args:
            tracking_uri: of the MLflow store.
            source: tags that say who started the run, and from which commit.
        """
        config = self.config
        # In a sweep, what is varied tells runs with one number of clients apart.
        method = source.get("variant", config.distill.name)
        alpha = config.partition.alpha
        skew = "" if alpha is None else f" alpha {alpha:g}"
        self.journal.start(
            experiment=config.tracking.experiment or f"fedistill-{self.data.spec.name}",
            run_name=f"{self._clients} {method}{skew} {config.relabel.name} s{config.seed}",
            tags={
                **source,
                "config_hash": config_file.sha256(config),
                "config_name": config.name,
            },
            uri=tracking_uri or None,
        )
        self.journal.params(
            {
                **config_file.to_dict(config),
                "num_clients": config.partition.clients,
                "ipc": list(config.distill.ipc),
                "dataset": self.data.spec.name,
                "method": config.distill.name,
                "data_fingerprint": self.data.fingerprint,
            }
        )
        self.journal.artifact(self.output / results.CONFIG, "config")

    @property
    def _pictures(self) -> Pictures:
        return Pictures(self.output / "figures", self.journal)

    @property
    def _split(self) -> str:
        if self.config.evaluate.at == "clients":
            return "clients"
        return "validation" if self.config.data.validation else "test"

    @property
    def _clients(self) -> str:
        """Zero-padded, so that names sort by number of clients."""
        return f"N={self.config.partition.clients:02d}"

    def partition(self, parts: Partition) -> None:
        """Keep who holds what, as a file and as a picture."""
        labels, spec = self.data.train.labels, self.data.spec
        path = self.output / "partition.json"
        parts.save(path, labels, spec)
        self.journal.artifact(path, "partition")
        self._pictures.draw("partition", lambda: partition.figure(parts, labels, spec))

    def holdings(self, histograms: Mapping[int, list[int]]) -> None:
        """Keep what devices say they hold: whose images are where is nobody's to write down."""
        path = self.output / "partition.json"
        everyone = range(self.config.partition.clients)
        held = [histograms.get(client, [0] * self.data.spec.num_classes) for client in everyone]
        tree = {"class_names": self.data.spec.class_names, "histograms": held}
        results.write_json(path, tree)
        self.journal.artifact(path, "partition")
        title = f"{self.data.spec.name}: what {len(held)} devices hold"
        self._pictures.draw("partition", lambda: partition.draw(held, self.data.spec, title))

    def clients(self, strategy: FedDistill, top1: Mapping[int, float]) -> None:
        """Keep what each client reported, and how good its teacher is, if it is here."""
        shares = strategy.shares
        for number, share in sorted(shares.items()):
            run = f"client/{number:02d}"
            name = f"{self._clients} client={number:02d}"
            self.journal.child(
                run,
                name,
                "client",
                {
                    **strategy.descriptions[number].machine,  # no fact of a device replaces ours
                    "partition_id": number,
                    "from_store": ", ".join(share.from_store),
                },
            )
            self.journal.curve("teacher/train_loss", share.teacher_curve, run)
            self.journal.curve("recover/loss", share.recover_curve, run)
            for curve_name, curve in share.curves.items():
                self.journal.curve(f"recover/{curve_name}", curve, run)
            seconds = {f"seconds/{stage}": value for stage, value in share.seconds.items()}
            self.journal.metrics(seconds, run=run)
            if number in top1:
                self.journal.metrics({"teacher/top1": top1[number]}, run=run)
                self.journal.metrics({"teacher/top1_by_client": top1[number]}, step=number)
        self._pictures.losses(shares)
        if shares:
            first = min(shares)
            self._pictures.sizes("recover", shares[first].curves, f"client {first}")
        for curve_name, curve in strategy.curves.items():
            self.journal.curve(f"cotrain/{curve_name}", curve)
        self._pictures.sizes("cotrain", strategy.curves, "server")

    def scores(
        self, ipc: int, synthetic: SyntheticSet, scores: Scores, teacher_top1: Sequence[float]
    ) -> None:
        """Keep the accuracies of one set, in its card too."""
        add_to_card(self._set_folder(ipc), score=scores.as_dict()["students"])
        self.journal.artifact(self._set_folder(ipc) / "card.json", f"sets/ipc-{ipc}")
        run = f"ipc/{ipc:03d}"
        self.journal.child(run, f"{self._clients} ipc={ipc:03d}", "ipc", {"ipc": ipc})
        for kind, rows in (("student", scores.students), ("baseline", scores.baselines)):
            for name, score in rows.items():
                prefix = f"{kind}/{name}"
                values = {f"{prefix}/top1_mean": score.mean, f"{prefix}/top1_std": score.std}
                if kind == "baseline" and "bytes" in scores.notes.get(name, {}):
                    values[f"{prefix}/mbytes_up"] = scores.notes[name]["bytes"]["up"] / 1e6
                self.journal.metrics(values, run=run)
                self.journal.curve(f"{prefix}/top1_seed", list(enumerate(score.top1)), run)
                for seed, curve in enumerate(score.curves):
                    self.journal.curve(f"{prefix}/train_loss_s{seed}", curve, run)
        if scores.ranking is not None:
            found = scores.ranking.as_dict()
            rows = found.pop("rows")
            found |= {f"{name}/top1_mean": row["top1_mean"] for name, row in rows.items()}
            self.journal.metrics({f"ranking/{name}": v for name, v in found.items()}, run=run)
        if scores.traffic:
            self.journal.metrics({"mbytes_up": scores.traffic["up"] / 1e6}, run=run)
        first = next(iter(scores.students.values()))
        number = self.config.partition.clients
        self.journal.metrics({"acc_mean": first.mean, "acc_std": first.std}, run=run)
        self.journal.curve("acc_vs_clients", [(number, value) for value in first.top1], run)
        self.journal.metrics(
            {f"acc_mean/ipc_{ipc:03d}": first.mean, f"acc_std/ipc_{ipc:03d}": first.std}
        )
        self.journal.metrics({"acc_by_ipc/mean": first.mean}, step=ipc)
        title = f"{self.data.spec.name}, {number} clients, IPC {ipc}"
        bars = partial(
            figures.score_bars, scores.students, scores.baselines, teacher_top1, title, self._split
        )
        self._pictures.draw(f"scores_ipc-{ipc}", bars)
        if first.network is not None:
            self._pictures.feature_map(self.config, self.data, synthetic, first.network, ipc)

    def sets(self, strategy: FedDistill) -> None:
        """Save the sets, each with its recipe and provenance: before students can fail."""
        for ipc, synthetic in strategy.sets.items():
            folder = self._set_folder(ipc)
            synthetic.with_card(
                recipe=config_file.shareable(self.config),
                provenance=self._provenance(strategy, ipc),
            ).save(folder)
            self._pictures.draw(f"set_ipc-{ipc}", partial(figures.image_sheet, synthetic))
            self.journal.artifact(folder / "images.safetensors", f"sets/ipc-{ipc}")

    def _set_folder(self, ipc: int) -> Path:
        return self.output / "sets" / f"ipc-{ipc}"

    def result(
        self,
        strategy: FedDistill,
        scores: Mapping[int, Scores],
        teacher_top1: Mapping[int, float],
        seconds: Mapping[str, float],
    ) -> None:
        """Write result.json and the metrics that sum the run up."""
        traffic, beside = strategy.exchange.traffic, strategy.exchange.beside
        total = traffic.sums()
        everyone = range(self.config.partition.clients)
        top1 = [round(teacher_top1[n], 3) if n in teacher_top1 else None for n in everyone]
        # Teachers that stay at home are not tested.
        found = list(teacher_top1.values())
        mean = round(sum(found) / len(found), 3) if found else None
        rounded = {stage: round(value, 3) for stage, value in seconds.items()}
        self.journal.metrics({f"bytes/{way}": count for way, count in total.items()})
        self.journal.metrics({f"phase_seconds/{k}": value for k, value in rounded.items()})
        if mean is not None:
            self.journal.metrics({"teacher/top1_mean": mean})
        results.write_json(
            self.output / results.RESULT,
            {
                "name": self.config.name,
                "seed": self.config.seed,
                "config_sha256": config_file.sha256(self.config),
                "hardware": results.hardware(),
                "versions": results.versions(),
                "clients": self.config.partition.clients,
                "evaluated_on": self._split,
                "teachers": {"top1": top1, "top1_mean": mean},
                "sets": {str(ipc): self._set(strategy, ipc, scores[ipc]) for ipc in strategy.sets},
                "bytes": {
                    **total,
                    "per_client": self._traffic(traffic),
                    "evaluation": beside.sums(),
                },
                "absent_clients": sorted(strategy.failures),
                "absent_because": {
                    str(client): last_line(why) for client, why in sorted(strategy.failures.items())
                },
                **self._devices(strategy),
                "absent_labellers": sorted(strategy.absent_labellers),
                "seconds": rounded,
                "from_store": {
                    stage: [
                        n for n, it in sorted(strategy.shares.items()) if stage in it.from_store
                    ]
                    for stage in ("squeeze", "recover")
                },
                "uses_real_images": planning.distiller_of(self.config).uses_real_images,
                "mlflow": self._mlflow(),
            },
        )
        self.journal.artifact(self.output / results.RESULT)

    def _devices(self, strategy: FedDistill) -> dict[str, dict[str, str]]:
        """Return what the devices of a deployment call themselves."""
        names = strategy.exchange.names
        return {"devices": {str(n): names[n] for n in sorted(names)}} if names else {}

    def everything(self) -> None:
        """Let MLflow have the files that it lacks: results reach the operator through it."""
        for folder in sorted((self.output / "sets").glob("*/")):
            for name in ("labels.safetensors", "README.md", "card.json"):
                if (folder / name).is_file():
                    self.journal.artifact(folder / name, f"sets/{folder.name}")
        self.journal.artifact(self.output / results.CONFIG)
        self.journal.artifact(self.output / "partition.json")
        self.journal.artifact(self.journal.path)  # as far as it goes; the page draws its curves

    def _provenance(self, strategy: FedDistill, ipc: int) -> dict[str, Any]:
        return {
            "clients": self.config.partition.clients,
            "absent_clients": sorted(strategy.failures),
            "images_by_client": {str(n): sum(counts) for n, counts in strategy.plans[ipc].items()},
            "data_fingerprint": self.data.fingerprint,
            "config_sha256": config_file.sha256(self.config),
            "uses_real_images": planning.distiller_of(self.config).uses_real_images,
            "versions": results.versions(),
            "hardware": results.hardware(),
        }

    def _set(self, strategy: FedDistill, ipc: int, scores: Scores) -> dict[str, Any]:
        folder = self._set_folder(ipc)
        synthetic = strategy.sets[ipc]
        return {
            "sha256": synthetic.sha256,
            "images": len(synthetic),
            "bytes": {
                kind: (folder / f"{kind}.safetensors").stat().st_size
                for kind in ("images", "labels")
            },
            **scores.as_dict(),
        }

    @property
    def _stages(self) -> tuple[str, ...]:
        home = self.config.relabel.at == "clients"
        return (wire.DESCRIBE, wire.DISTILL, *((wire_labels.LABEL,) if home else ()))

    def _traffic(self, traffic: Traffic) -> dict[str, Any]:
        found = {}
        for number in range(self.config.partition.clients):
            up, down = traffic.up.get(number, {}), traffic.down.get(number, {})
            found[str(number)] = {
                "up": sum(up.values()),
                "down": sum(down.values()),
                "stages": {
                    stage: {"up": up.get(stage, 0), "down": down.get(stage, 0)}
                    for stage in self._stages
                },
            }
        return found

    def where_in_mlflow(self) -> None:
        """Write into result.json where MLflow keeps the run, once it has arrived there."""
        path = self.output / results.RESULT
        if path.exists():
            results.write_json(path, {**results.read_json(path), "mlflow": self._mlflow()})

    def _mlflow(self) -> dict[str, str | None]:
        stored = tracking.stored_run(self.output)
        return {
            "tracking_uri": stored.tracking_uri if stored else None,
            "experiment_id": stored.experiment_id if stored else None,
            "run_id": stored.run_id if stored else None,
        }
