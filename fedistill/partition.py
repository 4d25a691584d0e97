"""Deal the training images to the clients.

iid            every client gets its share of every class
dirichlet      the shares of a class are drawn from Dirichlet(alpha): Yurochkin et al.,
               arXiv:1905.12022
pathological   every client holds few classes: McMahan et al., arXiv:1602.05629, Li et al.,
               arXiv:2102.02079
shards         the images sorted by class, cut into equal pieces: McMahan et al.
quantity       all alike but for their sizes, drawn from Dirichlet(alpha)

Every image goes to exactly one client. Dirichlet is flwr-datasets' own; its partitioners for the
other schemes leave images or whole classes out, or need them in a suitable order first, and what
remains is a line or two.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedistill.config import PartitionConfig
from fedistill.errors import PartitionError
from fedistill.images import DataSpec
from fedistill.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ints = npt.NDArray[np.int64]

# flwr-datasets tries 11 times with each seed.
_DIRICHLET_SEEDS = 5


@dataclass(frozen=True)
class Partition:
    """Which client holds which training images.

    Attributes:
        config: the scheme and its options.
        seed: draws the same split again.
        indices: of each client, int64 [M_k], ascending.
    """

    config: PartitionConfig
    seed: int
    indices: tuple[Tensor, ...]

    @property
    def num_partitions(self) -> int:
        """Number of clients."""
        return len(self.indices)

    def histograms(self, labels: Tensor, num_classes: int) -> list[list[int]]:
        """Count the images of each client [N] and class [C]."""
        return [
            torch.bincount(labels[index], minlength=num_classes).tolist() for index in self.indices
        ]

    def save(self, path: Path, labels: Tensor, spec: DataSpec) -> None:
        """Write the split as JSON, one key a line."""
        tree = {
            "partition": asdict(self.config),
            "seed": self.seed,
            "class_names": spec.class_names,
            "histograms": self.histograms(labels, spec.num_classes),
            "indices": [index.tolist() for index in self.indices],
        }
        lines = [f'"{key}": {json.dumps(tree[key], separators=(",", ":"))}' for key in tree]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Partition":
        """Read what `save` wrote.

        Raises:
            PartitionError: the file is missing, or is not a partition.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            indices = tuple(torch.tensor(index, dtype=torch.int64) for index in tree["indices"])
            return cls(PartitionConfig(**tree["partition"]), tree["seed"], indices)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PartitionError(
                f"{path} is not a partition that can be read ({error!r}); give the "
                "partition.json of a run"
            ) from error


def split(labels: Tensor, num_classes: int, config: PartitionConfig, seed: int) -> Partition:
    """Deal every image to one client.

    Args:
        labels: of the training images, int64 [M].
        num_classes: number of classes.
        config: the scheme and its options.
        seed: draws which image goes where.

    Raises:
        PartitionError: the images cannot be dealt so that every client has `min_samples`.
    """
    _check_counts(labels, num_classes, config)
    random = numpy_generator(seed, "partition")
    # Which images of a class go together must not depend on the order they came in.
    order = random.permutation(len(labels))
    dealt = _SCHEMES[config.name](labels.numpy()[order], config, random)
    indices = tuple(torch.from_numpy(np.sort(order[part])) for part in dealt)
    smallest = min(len(index) for index in indices)
    if smallest < config.min_samples:
        raise PartitionError(
            f"partition '{config.name}' leaves a client with {smallest} of {len(labels)} images; "
            f"partition.min_samples asks for {config.min_samples}; lower it, or lower "
            f"partition.clients ({config.clients})"
        )
    return Partition(config, seed, indices)


def _check_counts(labels: Tensor, num_classes: int, config: PartitionConfig) -> None:
    assert int(labels.max()) < num_classes, f"labels go beyond {num_classes} classes"
    needed = config.clients * config.min_samples
    if needed > len(labels):
        raise PartitionError(
            f"partition.clients is {config.clients} and partition.min_samples is "
            f"{config.min_samples}, which needs {needed} images; there are {len(labels)}; "
            "lower one of them, or use more data"
        )


def _iid(labels: Ints, config: PartitionConfig, random: np.random.Generator) -> list[Ints]:
    """Deal the images class by class, like cards: counts differ by one at most."""
    by_class = np.argsort(labels, kind="stable")
    return [by_class[client :: config.clients] for client in range(config.clients)]


def _dirichlet(labels: Ints, config: PartitionConfig, random: np.random.Generator) -> list[Ints]:
    assert config.alpha is not None  # filled in for its scheme
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    rows = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
    for seed in random.integers(2**32, size=_DIRICHLET_SEEDS).tolist():
        partitioner = DirichletPartitioner(
            num_partitions=config.clients,
            partition_by="label",
            alpha=config.alpha,
            min_partition_size=config.min_samples,
            self_balancing=False,
            seed=seed,
        )
        partitioner.dataset = rows
        try:
            with warnings.catch_warnings():
                # It warns at each of its tries; what counts is whether the last one failed.
                warnings.filterwarnings("ignore", message="The specified min_partition_size")
                parts = [partitioner.load_partition(k)["row"] for k in range(config.clients)]
        except ValueError:
            continue
        return [np.asarray(part, dtype=np.int64) for part in parts]
    raise PartitionError(
        f"no Dirichlet draw with alpha {config.alpha} gives each of {config.clients} clients "
        f"{config.min_samples} or more of {len(labels)} images; raise partition.alpha, or lower "
        "partition.clients or partition.min_samples"
    )


def _pathological(labels: Ints, config: PartitionConfig, random: np.random.Generator) -> list[Ints]:
    """Deal the classes round the clients until each has its number; cut a class that is shared."""
    assert config.classes_per_client is not None  # filled in for its scheme
    clients, per_client = config.clients, config.classes_per_client
    classes = random.permutation(np.unique(labels))
    if per_client > len(classes):
        raise PartitionError(
            f"partition.classes_per_client is {per_client}; the data have {len(classes)} classes; "
            f"accepted: 1 to {len(classes)}"
        )
    if clients * per_client < len(classes):
        raise PartitionError(
            f"{clients} clients with {per_client} classes each hold {clients * per_client} of "
            f"{len(classes)} classes, nobody the others; raise partition.classes_per_client to "
            f"{-(-len(classes) // clients)}, or partition.clients to "
            f"{-(-len(classes) // per_client)}"
        )
    seats = np.arange(clients * per_client)
    parts: list[list[Ints]] = [[] for _ in range(clients)]
    for place, label in enumerate(classes):
        holders = seats[seats % len(classes) == place] // per_client
        members = np.flatnonzero(labels == label)
        if len(members) < len(holders):
            raise PartitionError(
                f"class {label} has {len(members)} images and {len(holders)} clients to share it; "
                "lower partition.clients or partition.classes_per_client"
            )
        for client, part in zip(holders, np.array_split(members, len(holders)), strict=True):
            parts[client].append(part)
    return [np.concatenate(part) for part in parts]


def _shards(labels: Ints, config: PartitionConfig, random: np.random.Generator) -> list[Ints]:
    """Sort by class, cut into equal shards, give every client its number of shards at random."""
    assert config.shards_per_client is not None  # filled in for its scheme
    count = config.clients * config.shards_per_client
    if count > len(labels):
        raise PartitionError(
            f"{config.clients} clients with {config.shards_per_client} shards each need {count} "
            f"images; there are {len(labels)}; lower partition.clients or "
            "partition.shards_per_client"
        )
    shards = np.array_split(np.argsort(labels, kind="stable"), count)
    deal = random.permutation(count).reshape(config.clients, -1)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in deal]


def _quantity(labels: Ints, config: PartitionConfig, random: np.random.Generator) -> list[Ints]:
    """Give every client `min_samples`, and deal the rest by one Dirichlet draw."""
    assert config.alpha is not None  # filled in for its scheme
    spare = len(labels) - config.clients * config.min_samples
    shares = random.dirichlet(np.full(config.clients, config.alpha))
    ends = np.rint(shares.cumsum() * spare).astype(np.int64)
    ends += config.min_samples * np.arange(1, config.clients + 1)
    return np.split(np.arange(len(labels)), ends[:-1])


_SCHEMES: dict[str, Callable[[Ints, PartitionConfig, np.random.Generator], list[Ints]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "shards": _shards,
    "quantity": _quantity,
}


def figure(partition: Partition, labels: Tensor, spec: DataSpec) -> "Figure":
    """Draw who holds what: images by client and class, and how many each client has."""
    return draw(partition.histograms(labels, spec.num_classes), spec, _title(partition, spec))


def draw(histograms: Sequence[Sequence[int]], spec: DataSpec, title: str) -> "Figure":
    """Draw who holds what, from the images of each client [N] and class [C]."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = np.array(histograms)
    clients, classes = counts.shape
    width = float(np.clip(2.6 + 0.52 * classes, 6.5, 14))
    height = float(np.clip(1.7 + 0.34 * clients, 2.8, 11))
    drawing = Figure(figsize=(width, height), dpi=150, layout="constrained")
    held, sizes = drawing.subplots(1, 2, sharey=True, width_ratios=[width - 1.5, 1.5])
    _draw_counts(held, counts)
    _name_ticks(held, spec.class_names, clients)
    held.set(xlabel="class", ylabel="client", ylim=(clients - 0.5, -0.5))
    held.spines[:].set_visible(False)
    held.set_title(title, loc="left", fontsize=11, fontweight="bold")

    sizes.barh(range(clients), counts.sum(1), color="#4a7fb5", height=0.7)
    sizes.spines[["top", "right", "left"]].set_visible(False)
    sizes.tick_params(axis="y", length=0, labelleft=False)
    sizes.tick_params(axis="x", labelsize=8)
    sizes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    sizes.set_xlabel("images")
    return drawing


def _draw_counts(axes: Any, counts: npt.NDArray[Any]) -> None:
    """Draw the table [N, C] in colours, with numbers, or with a scale where they do not fit."""
    from matplotlib.colors import PowerNorm

    clients, classes = counts.shape
    # The square root keeps small counts apart from none. Full blue is kept out: text stands on it.
    norm = PowerNorm(0.5, vmin=0, vmax=counts.max() * 1.2)
    edges = np.arange(classes + 1) - 0.5, np.arange(clients + 1) - 0.5
    look = {"cmap": "Blues", "norm": norm, "edgecolors": "white", "linewidth": 0.6}
    cells = axes.pcolormesh(*edges, counts, **look)
    if classes > 20 or clients > 30:
        scale = axes.figure.colorbar(cells, ax=axes, pad=0.01, aspect=40)
        scale.ax.set_ylim(0, counts.max())
        scale.set_label("images of the class", fontsize=8)
        scale.ax.tick_params(labelsize=8)
        scale.outline.set_visible(False)
        return
    for (client, label), count in np.ndenumerate(counts):
        colour = "white" if norm(count) > 0.62 else "#1d3557"
        look = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
        axes.text(label, client, f"{count}" if count else "\N{MIDDLE DOT}", **look)


def _name_ticks(axes: Any, names: tuple[str, ...], clients: int) -> None:
    """Name every class and client while there is room; number some of them otherwise."""
    axes.tick_params(length=0)
    every = 1 if clients <= 30 else 5
    axes.set_yticks(range(0, clients, every), fontsize=8, labels=range(0, clients, every))
    if len(names) > 40:
        axes.set_xticks(range(0, len(names), 10), labels=range(0, len(names), 10), fontsize=8)
        return
    turn = max(map(len, names)) > 5
    axes.set_xticks(
        range(len(names)),
        labels=names,
        fontsize=8,
        rotation=40 if turn else 0,
        ha="right" if turn else "center",
        rotation_mode="anchor",
    )


def _title(partition: Partition, spec: DataSpec) -> str:
    config, number = partition.config, partition.num_partitions
    values = asdict(config)
    options = "".join(
        f", {key.replace('_', ' ')} {values[key]}"
        for key in ("alpha", "classes_per_client", "shards_per_client")
        if values[key] is not None
    )
    title = f"{spec.name}: {config.name}{options}, {number} client"
    return title if number == 1 else f"{title}s"
