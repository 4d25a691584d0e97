"""Representatives of clusters."""

import torch

from fedistill.clusters import representatives

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
