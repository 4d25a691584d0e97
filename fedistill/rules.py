"""Rules that options must follow; what breaks them is told all at once."""

from collections.abc import Callable, Mapping
from typing import Any

# How pydantic reads a section, and the options of a part: no unknown keys, no nan, no infinity.
STRICT: Mapping[str, Any] = {"extra": "forbid", "strict": False, "allow_inf_nan": False}

Rule = tuple[bool, str]  # whether it holds, and what to say where it does not


def check(*rules: Rule) -> None:
    """Raise one ValueError with the message of every rule that does not hold."""
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise ValueError("; ".join(broken))


def above_zero(section: object, *keys: str) -> Rule:
    """Rule: these values, where they are given, are above 0."""
    return _rule(section, keys, lambda value: value > 0, "above 0")


def at_least(section: object, least: int, *keys: str) -> Rule:
    """Rule: these values, where they are given, are `least` or more."""
    return _rule(section, keys, lambda value: value >= least, f"{least} or more")


def below_one(section: object, *keys: str) -> Rule:
    """Rule: these values, where they are given, are 0 to below 1."""
    return _rule(section, keys, lambda value: 0 <= value < 1, "0 to below 1")


def share(section: object, *keys: str) -> Rule:
    """Rule: these values, where they are given, are 0 to 1."""
    return _rule(section, keys, lambda value: 0 <= value <= 1, "0 to 1")


def part(section: object, *keys: str) -> Rule:
    """Rule: these values, where they are given, are above 0, up to 1."""
    return _rule(section, keys, lambda value: 0 < value <= 1, "above 0, up to 1")


def areas(key: str, bounds: tuple[float, float]) -> Rule:
    """Rule: these are the least and the most area of a view."""
    low, high = bounds
    return (
        0 < low <= high <= 1,
        f"{key} is {[low, high]}; accepted: two areas, 0 < least <= most <= 1",
    )


def _rule(
    section: object, keys: tuple[str, ...], holds: Callable[[float], bool], accepted: str
) -> Rule:
    values = {key: getattr(section, key) for key in keys}
    bad = {key: value for key, value in values.items() if value is not None and not holds(value)}
    return not bad, "; ".join(f"{key} is {v}; accepted: {accepted}" for key, v in bad.items())
