"""Names of groups of runs that MLflow's charts draw in colours that can be told apart.

A checksum of a group's name chooses its colour in MLflow (as of 3.17), and nothing that is stored
changes that: of nine lines some would have one colour. Blanks at the end of a name are not seen,
and give it another one.
"""

from collections.abc import Iterable
from math import dist

# What MLflow's pages choose from (3.17), in their order.
# fmt: off
_PALETTE = (
    "a6630c", "c83243", "b45091", "8a63bf", "434a93", "137dae", "04867d", "308613", "facb66",
    "1f272d", "445461", "5f7281", "8396a5", "93320b", "be501e", "de7921", "f2be88", "115026",
    "277c43", "3ba65e", "8ddda8", "9e102c", "c82d4c", "e65b77", "f792a6", "0e538b", "2272b4",
    "4299e0", "8acaff",
)
# fmt: on
_WHITE = (255, 255, 255)  # of the page, on which pale lines are lost
_PALE = 150.0
_APART = (110.0, 70.0, 40.0, 1.0)  # of 442 from black to white: as far as there is room for
_BLANKS = 60  # at most: each changes the checksum


def told_apart(tag: str, names: Iterable[str]) -> dict[str, str]:
    """Return for each name the value of a tag that gives its group a colour unlike the others'.

    Args:
        tag: by whose value runs are grouped.
        names: of the groups, in a fixed order.
    """
    used: list[tuple[int, ...]] = []
    found = {}
    for name in names:
        candidates = [name + " " * blanks for blanks in range(_BLANKS)]
        found[name] = next(
            (it for apart in _APART for it in candidates if _room(colour(tag, it), used) >= apart),
            name,
        )
        used.append(colour(tag, found[name]))
    return found


def colour(tag: str, value: str) -> tuple[int, ...]:
    """Return the red, green and blue, 0 to 255, that MLflow gives the group of a tag's value."""
    first = second = 0
    for sign in memoryview(f"tag.{tag}.{value}".encode("utf-16-le")).cast("H"):  # as JavaScript
        first = (first + sign) % 255
        second = (second + first) % 255
    code = _PALETTE[(first | second << 8) % len(_PALETTE)]
    return tuple(bytes.fromhex(code))


def _room(one: tuple[int, ...], others: Iterable[tuple[int, ...]]) -> float:
    """Return how far a colour is from the nearest other; a pale one has no room."""
    if dist(one, _WHITE) < _PALE:
        return 0.0
    return min((dist(one, other) for other in others), default=_APART[0])
