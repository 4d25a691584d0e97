"""Representatives of clusters."""

import pytest
import torch
from sklearn.cluster import KMeans

from fedistill import clusters
from fedistill.clusters import lloyd, representatives

STREAM = torch.Generator().manual_seed(0)
CENTRES = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
SIZES = [40, 3, 20, 5]
ROWS = torch.cat(
    [
        centre + 0.5 * torch.randn(size, 2, generator=STREAM)
        for centre, size in zip(CENTRES, SIZES, strict=True)
    ]
)
OWN = torch.arange(4).repeat_interleave(torch.tensor(SIZES))


@pytest.fixture(params=["library", "device"], autouse=True)
def _either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cluster as on the CPU, or as on a GPU."""
    if request.param == "device":
        monkeypatch.setattr(clusters, "_library", lloyd)


def test_every_cluster_is_represented_by_the_row_nearest_its_centre():
    chosen = representatives(ROWS, 4, 0)
    assert sorted(OWN[chosen].tolist()) == [0, 1, 2, 3]
    for row in chosen.tolist():
        mine = ROWS[OWN[row] == OWN]
        distances = (mine - mine.mean(0)).square().sum(1)
        assert torch.equal(mine[distances.argmin()], ROWS[row])


def test_rows_are_different_and_the_same_every_time():
    for count in (1, 7, 30):
        chosen = representatives(ROWS, count, 3)
        assert len(chosen.unique()) == len(chosen) == count
        assert torch.equal(chosen, representatives(ROWS.clone(), count, 3))


def test_more_than_there_are_is_all_of_them():
    assert representatives(ROWS, 1000, 0).tolist() == list(range(len(ROWS)))


def test_equal_rows_leave_room_for_others():
    rows = torch.cat([torch.zeros(10, 2), torch.ones(2, 2)])
    chosen = representatives(rows, 5, 0)
    assert len(chosen.unique()) == 5
    assert {0.0, 1.0} <= set(rows[chosen, 0].tolist())


def test_the_global_generators_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    representatives(ROWS, 4, 0)
    assert torch.equal(torch.rand(2), expected)


def inertia(rows: torch.Tensor, centres: torch.Tensor) -> float:
    """Squared distances of rows from the nearest centre."""
    return torch.cdist(rows, centres).amin(1).square().sum().item()


@pytest.mark.parametrize("count", [1, 4, 16])
def test_clusters_found_on_a_device_are_as_tight_as_those_of_the_library(count: int):
    stream = torch.Generator().manual_seed(2)
    places = 20 * torch.randn(count, 8, generator=stream)
    rows = (places[:, None] + torch.randn(count, 40, 8, generator=stream)).flatten(0, 1)
    best = KMeans(count, n_init=20, random_state=0).fit(rows.numpy()).inertia_
    found = [inertia(rows, lloyd(rows, count, seed)) for seed in range(5)]
    assert min(found) == pytest.approx(best, rel=1e-4)
    # Of rows without any clusters too: the mean over seeds, as with one start of the library's.
    rows = torch.randn(300, 8, generator=stream)
    count += 10
    theirs = [
        KMeans(count, n_init=1, max_iter=20, random_state=seed).fit(rows.numpy()).inertia_
        for seed in range(5)
    ]
    ours = [inertia(rows, lloyd(rows, count, seed)) for seed in range(5)]
    assert sum(ours) < 1.03 * sum(theirs)


def test_the_seed_decides_where_the_search_on_a_device_starts():
    rows = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    first, again, other = (lloyd(rows, 9, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
