"""Streams of random numbers: independent of each other, and the same for ever."""

import threading

import pytest
import torch

from fedistill.seeding import derive_seed, generator, global_seed, numpy_generator


def test_seeds_are_the_same_in_every_version():
    # Published sets replay their views from such seeds: these numbers must never change.
    assert derive_seed(0) == 3456079177858693020
    assert derive_seed(0, "relabel", 10) == 2393187220598068950
    assert derive_seed(7, "views", 3) == 5423081498129722048


def test_every_part_of_the_path_counts():
    paths = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", "1"), (0, "a", 1, 1),
             (0, "a", "b"), (0, "ab"), (-1,)]  # fmt: skip
    assert len({derive_seed(*path) for path in paths}) == len(paths)  # type: ignore[arg-type]


def test_generators_start_from_their_path():
    assert torch.equal(
        torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x"))
    )
    assert numpy_generator(1, "x").random() == numpy_generator(1, "x").random()
    assert numpy_generator(1, "x").random() != numpy_generator(1, "y").random()


def test_the_global_generator_is_restored_even_after_an_error():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)

    def fail() -> None:
        with global_seed(1, "x"):
            torch.rand(5)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.rand(2), expected)


def test_blocks_with_a_global_seed_nest():
    with global_seed(1, "outer"):
        first = torch.rand(1)
        with global_seed(1, "inner"):
            torch.rand(1)
        second = torch.rand(1)
    with global_seed(1, "outer"):
        assert torch.equal(torch.rand(2), torch.cat([first, second]))


def test_threads_do_not_mix_their_streams():
    found: dict[int, torch.Tensor] = {}

    def draw(number: int) -> None:
        with global_seed(number, "thread"):
            found[number] = torch.cat([torch.rand(1) for _ in range(200)])

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, values in found.items():
        with global_seed(number, "thread"):
            assert torch.equal(values, torch.cat([torch.rand(1) for _ in range(200)]))
