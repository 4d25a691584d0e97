"""Whatever the scheme: no image is lost, none is held twice, and a seed means one split."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedistill import partition
from fedistill.config import PartitionConfig
from fedistill.errors import PartitionError
from fedistill.images import DataSpec

SCHEMES = ("iid", "dirichlet", "pathological", "shards", "quantity")
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
few = settings(derandomize=True, max_examples=25, deadline=None)


def labels_of(sizes: list[int], order: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(order))]


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, int, dict[str, int]]:
    """Labels, number of classes, and options that every scheme can meet."""
    classes = draw(st.integers(2, 6))
    sizes = draw(st.lists(st.integers(30, 60), min_size=classes, max_size=classes))
    clients = draw(st.integers(1, 8))
    least = -(-classes // clients)
    options = {
        "clients": clients,
        "classes_per_client": draw(st.integers(least, classes)),
        "shards_per_client": draw(st.integers(1, 3)),
        "min_samples": draw(st.integers(1, 3)),
    }
    return labels_of(sizes, draw(st.integers(0, 99))), classes, options


def of_scheme(scheme: str, **options: int) -> PartitionConfig:
    """Make a config from the options that have a meaning for the scheme."""
    own = {
        "dirichlet": {"alpha"},
        "pathological": {"classes_per_client"},
        "shards": {"shards_per_client"},
        "quantity": {"alpha"},
    }
    keys = own.get(scheme, set()) | {"clients", "min_samples"}
    everything = {"alpha": 1.0, **options}
    return PartitionConfig(name=scheme, **{k: v for k, v in everything.items() if k in keys})


@every_scheme
@few
@given(problem=problems(), seed=st.integers(0, 2**40))
def test_every_image_goes_to_exactly_one_client(scheme, problem, seed):
    labels, classes, options = problem
    config = of_scheme(scheme, **options)
    found = partition.split(labels, classes, config, seed)
    assert found.num_partitions == config.clients
    assert all(index.dtype == torch.int64 for index in found.indices)
    assert torch.cat(found.indices).sort().values.equal(torch.arange(len(labels)))
    counts = torch.tensor(found.histograms(labels, classes))
    assert counts.sum(0).equal(torch.bincount(labels, minlength=classes))
    assert int(counts.sum(1).min()) >= config.min_samples
    if scheme == "iid":
        assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
        assert int(counts.sum(1).max() - counts.sum(1).min()) <= 1
    if scheme == "pathological":
        assert (counts > 0).sum(1).tolist() == [config.classes_per_client] * config.clients
    if scheme == "shards":
        assert int(counts.sum(1).max() - counts.sum(1).min()) <= config.shards_per_client


@every_scheme
@few
@given(problem=problems(), seed=st.integers(0, 2**40))
def test_a_seed_means_one_split(scheme, problem, seed):
    labels, classes, options = problem
    config = of_scheme(
        scheme,
        clients=4,
        classes_per_client=classes,
        shards_per_client=options["shards_per_client"],
    )
    first, again, other = (
        partition.split(labels, classes, config, s) for s in (seed, seed, seed + 1)
    )
    assert all(a.equal(b) for a, b in zip(first.indices, again.indices, strict=True))
    assert not all(a.equal(b) for a, b in zip(first.indices, other.indices, strict=True))


def test_the_default_pathological_split_drops_no_class():
    # flwr-datasets' own assignments drop classes here: 5 clients with 2 of 10 classes each.
    labels = labels_of([20] * 10, 0)
    found = partition.split(labels, 10, PartitionConfig(name="pathological"), 0)
    counts = torch.tensor(found.histograms(labels, 10))
    assert (counts > 0).sum(0).tolist() == [1] * 10


def test_a_smaller_alpha_is_a_more_uneven_split():
    labels = labels_of([200] * 10, 0)

    def spread(scheme: str, alpha: float) -> float:
        config = PartitionConfig(name=scheme, alpha=alpha)
        counts = partition.split(labels, 10, config, 3).histograms(labels, 10)
        return float(torch.tensor(counts).float().std(0).mean())

    assert spread("dirichlet", 0.1) > 2 * spread("dirichlet", 10.0)
    assert spread("quantity", 0.1) > 2 * spread("quantity", 10.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PartitionConfig(clients=41), "partition.clients is 41"),
        (PartitionConfig(clients=5, min_samples=9), "which needs 45 images; there are 40"),
        (PartitionConfig(name="dirichlet", alpha=0.01, min_samples=6), "raise partition.alpha"),
        (PartitionConfig(name="pathological", classes_per_client=5), "accepted: 1 to 4"),
        (
            PartitionConfig(name="pathological", clients=1, classes_per_client=2),
            "raise partition.classes_per_client to 4, or partition.clients to 2",
        ),
        (
            PartitionConfig(name="pathological", clients=11, classes_per_client=4),
            "10 images and 11 clients",
        ),
        (PartitionConfig(name="shards", clients=5, shards_per_client=9), "each need 45 images"),
        (PartitionConfig(name="shards", clients=3, min_samples=14), "which needs 42 images"),
    ],
)
def test_what_cannot_be_dealt_is_one_message(config, message):
    labels = labels_of([10] * 4, 0)
    with pytest.raises(PartitionError) as caught:
        partition.split(labels, 4, config, 0)
    assert message in str(caught.value)


def test_min_samples_is_checked_after_the_deal():
    labels = labels_of([2, 38], 0)
    config = PartitionConfig(name="pathological", clients=2, classes_per_client=1, min_samples=5)
    with pytest.raises(PartitionError, match="leaves a client with 2 of 40 images"):
        partition.split(labels, 2, config, 0)


def spec_of(classes: int) -> DataSpec:
    names = tuple(f"class {number}" for number in range(classes))
    return DataSpec(
        name="toy", class_names=names, channels=1, size=8, mean=(0.5,), std=(0.5,), flip=False
    )


def test_a_partition_survives_a_file(tmp_path: Path):
    labels = labels_of([10] * 4, 0)
    config = PartitionConfig(name="shards", clients=3)
    found = partition.split(labels, 4, config, 7)
    path = tmp_path / "partition.json"
    found.save(path, labels, spec_of(4))
    tree = json.loads(path.read_text())
    assert tree["histograms"] == found.histograms(labels, 4)
    assert tree["class_names"] == list(spec_of(4).class_names)
    again = partition.Partition.load(path)
    assert (again.config, again.seed) == (config, 7)
    assert all(a.equal(b) for a, b in zip(found.indices, again.indices, strict=True))


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"indices": "ab"}'])
def test_a_file_that_is_no_partition_is_one_message(tmp_path: Path, text: str | None):
    path = tmp_path / "partition.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PartitionError, match=r"partition\.json of a run"):
        partition.Partition.load(path)


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (5, 10), (50, 100)])
def test_the_figure_can_be_drawn(tmp_path: Path, clients: int, classes: int):
    labels = labels_of([60] * classes, 0)
    found = partition.split(labels, classes, PartitionConfig(clients=clients), 0)
    partition.figure(found, labels, spec_of(classes)).savefig(tmp_path / "partition.png", dpi=40)
    assert (tmp_path / "partition.png").stat().st_size > 0
