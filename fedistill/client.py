"""What a client does, with or without Flower: squeeze its shard, distil its share, label."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedistill.answers import Labeller, Sheet, answer, prior_adjustment
from fedistill.config import Config, ModelConfig
from fedistill.cores import set_threads
from fedistill.counts import Counts, count
from fedistill.images import DataSpec, ImageSet
from fedistill.models import build
from fedistill.shares import Share
from fedistill.store import Artefact, Store
from fedistill.training import device_for, resolve_precision
from fedistill.worker import Report, State, Worker, curve_of, restore_teachers, spared_of, worker_of


def make_share(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    counts: Sequence[int],
    *,
    partition_id: int,
    attempt: int = 0,
    made: Sequence[Sequence[int]] = (),
    teacher_states: Sequence[State] = (),
    report: Report = lambda stage, done, total, note: None,
    store: Store | None = None,
    device: torch.device | None = None,
) -> Share:
    """Do a client's work.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        counts: images wanted of each class; where sets of several sizes have images of their
            own, one row after the other (`planning.requests`).
        partition_id: of the client.
        attempt: 0, or the number of a later request for more images.
        made: what each earlier request got, counted like that; empty: there was none.
        teacher_states: the client's teachers, if they are trained already.
        report: called with stage, steps done, steps in all, and a note.
        store: what is made is kept there; None: in the one that the environment names.
        device: where to compute; None: as the config says.

    Returns:
        The client's share, its teachers included.
    """
    client = _worker(config, spec, shard, partition_id, report, store, device)
    squeezed: list[Artefact] = []
    if not teacher_states:
        squeezed = [client.squeeze(n) for n in range(len(config.teachers_of(partition_id)))]
    states = tuple(artefact.tensors for artefact in squeezed) or tuple(teacher_states)
    recovered = client.recover(counts, attempt, made, states)
    report("done", 1, 1, "")
    work = {"squeeze": squeezed, "recover": recovered}
    return Share(
        partition_id=partition_id,
        images=torch.cat([artefact.tensors["images"] for artefact in recovered]),
        counts=tuple(counts),
        teachers=states,
        teacher_curve=curve_of(squeezed[0]) if squeezed else (),
        recover_curve=curve_of(recovered[0]),
        curves={
            name: [(step, value) for step, value in curve]
            for artefact in recovered
            for name, curve in artefact.notes["curves"].items()
        },
        seconds={
            stage: sum((it.notes["seconds"] + spared_of(it) for it in items), 0.0)
            for stage, items in work.items()
        },
        from_store=tuple(
            stage
            for stage, items in work.items()
            if any(it.found or spared_of(it) > 0 for it in items)
        ),
    )


def _worker(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    partition_id: int,
    report: Report,
    store: Store | None,
    device: torch.device | None,
) -> Worker:
    store = Store.from_environment() if store is None else store
    return worker_of(config, spec, shard, partition_id, store, report, device)


class Kept(NamedTuple):
    """What the store holds of a client's work.

    Attributes:
        teachers: all its teachers.
        share: its images too.
        work: names of the two; clients for whom they are the same do the same work.
    """

    teachers: bool
    share: bool
    work: tuple[str, str]


def kept(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    counts: Sequence[int],
    *,
    partition_id: int,
    store: Store,
) -> Kept:
    """Look up what a client would find in the store, were it asked for a first share.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        counts: as for `make_share`.
        partition_id: of the client.
        store: where to look; it has a folder.
    """
    client = worker_of(config, spec, shard, partition_id, store)
    numbers = range(len(config.teachers_of(partition_id)))
    teacher_keys = [client.teacher_key(number) for number in numbers]
    jobs = client.jobs(counts, ())
    # A share is known by its teachers' weights, which are not known before they are trained.
    names = [store.name("teacher", key) for key in teacher_keys]
    shares = [store.name("share", client.share_key(job, 0, ())) for job in jobs]
    work = (" ".join(names), " ".join([*names, *shares]))
    teachers = [store.get("teacher", key) for key in teacher_keys]
    states = [found.tensors for found in teachers if found is not None]
    if len(states) < len(numbers):
        return Kept(teachers=False, share=False, work=work)
    keys = [client.share_key(job, 0, states) for job in jobs]
    found_all = all(store.get("share", key) for key in keys)
    return Kept(teachers=True, share=found_all, work=work)


def train_from(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    weights: State,
    *,
    partition_id: int,
    server_round: int,
    report: Report = lambda stage, done, total, note: None,
    store: Store | None = None,
    device: torch.device | None = None,
) -> tuple[State, float]:
    """Do a client's part of a round of FedAvg: train the common network on its shard.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images.
        weights: of the common network; buffers included.
        partition_id: of the client.
        server_round: 1-based; enters the seed.
        report: called with stage, steps done, steps in all, and a note.
        store: what is made is kept there; None: in the one that the environment names.
        device: where to compute; None: as the config says.

    Returns:
        The trained weights and buffers, and the mean loss of the last epoch.

    Raises:
        RuntimeError: the weights are not those of the client's model.
    """
    client = _worker(config, spec, shard, partition_id, report, store, device)
    trained = client.train_from(weights, server_round)
    return trained.tensors, curve_of(trained)[-1][1]


def label(
    config: Config,
    spec: DataSpec,
    shard: ImageSet,
    sheet: Sheet,
    mine: Tensor,
    *,
    partition_id: int,
    report: Report = lambda stage, done, total, note: None,
    store: Store | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Label views of the integrated set with the teachers that this client has kept.

    Args:
        config: of the experiment.
        spec: of the data set.
        shard: the client's real images; they decide the key of its teachers.
        sheet: what there is to label.
        mine: which of it, bool [views, M].
        partition_id: of the client.
        report: as for `make_share`.
        store: the same.
        device: the same.

    Returns:
        Logits, float16 [number of these views, num_classes].

    Raises:
        RunError: the teachers are not in the store: others would not be those of this run.
    """
    client = _worker(config, spec, shard, partition_id, report, store, device)
    states = [client.kept_teacher(n) for n in range(len(config.teachers_of(partition_id)))]
    teacher = restore_teachers(config, spec, partition_id, states).to(client.device)
    prior = None
    if config.relabel.prior_correction:
        prior = prior_adjustment(shard.histogram(spec.num_classes))
    (logits,) = answer(
        sheet,
        [Labeller(teacher, mine, prior)],
        spec,
        device=client.device,
        dtype=client.dtype,
        report=lambda done, total: report("label", done, total, ""),
    )
    return logits


def examine(
    config: Config,
    spec: DataSpec,
    held_out: ImageSet,
    model: ModelConfig,
    students: Sequence[State],
    *,
    device: torch.device | None = None,
) -> Counts:
    """Test students of one network on images that this client has learned nothing from.

    Args:
        config: of the experiment.
        spec: of the data set.
        held_out: the images.
        model: the network.
        students: weights and buffers of each.
        device: as for `make_share`.
    """
    set_threads(config.federation.cpus_per_client)
    if device is None:
        device = device_for(config.federation.gpus_per_client)
    networks = []
    for student in students:
        network = build(model, spec, config.seed, "restore")
        network.load_state_dict(dict(student))
        networks.append(network.to(device))
    return count(networks, held_out, spec, resolve_precision(config.precision, device))
