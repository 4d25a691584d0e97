"""A journal of a run, as tests of tracking write it."""

import math
from pathlib import Path

from fedistill.tracking import Journal

CONFIG = {
    "seed": 0,
    "data": {"name": "digits", "size": None},
    "distill": {"ipc": (1, 10, 50), "options": {}},
    "model": ({"name": "convnet"}, {"name": "resnet18"}),
}


def write_run(folder: Path, uri: str | None, name: str = "N=05 sre2l s0") -> Journal:
    """Write the journal of a small run: 2 clients, 1 set, artefacts, curves."""
    journal = Journal(folder)
    journal.start(experiment="fedistill-digits", run_name=name, tags={"sweep_id": "s1"}, uri=uri)
    journal.params(CONFIG)
    for client in range(2):
        run = f"client/{client:02}"
        journal.child(run, f"N=05 client={client:02}", "client", {"partition_id": client})
        journal.curve("teacher/val_acc", [(e, 10.0 * e + client) for e in range(20)], run=run)
    journal.child("ipc/010", "N=05 ipc=010", "ipc", {"ipc": 10, "num_clients": 5})
    journal.curve("acc_vs_clients", [(5, 90.0), (5, 90.0), (5, 91.0)], run="ipc/010")
    journal.metrics({"acc_mean/ipc_010": 90.5, "odd (name)": 1, "none": math.nan, "inf": math.inf})
    journal.metrics({"phase_seconds/recover": 3.5}, step=2)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "set.png").write_bytes(b"png")
    journal.artifact(folder / "config.yaml", "config")
    journal.artifact(folder / "figures", "figures")
    journal.tags({"phase": "done"})
    journal.experiment_tags({"mlflow.note.content": "notes"})
    journal.end("FINISHED")
    return journal
