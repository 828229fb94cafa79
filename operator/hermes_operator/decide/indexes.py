"""Sets of shard numbers as Kubernetes writes them: "0-3,7".

Decided here: how they are read and written. What a number means is not. Called by the other policies.
"""

from __future__ import annotations

from collections.abc import Iterable


def read(text: object, *, below: int) -> frozenset[int]:
    """The numbers in `text` that are in [0, below); parts that are no numbers are left out."""
    found: set[int] = set()
    for part in str(text or "").split(","):
        first, dash, last = part.partition("-")
        if first.isdecimal() and (last.isdecimal() or not dash):
            found.update(range(int(first), min(int(last or first) + 1, below)))
    return frozenset(found)


def write(numbers: Iterable[int]) -> str:
    """ "0-3,7"; "" for none."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def as_many(known: frozenset[int], new: Iterable[int], *, characters_max: int) -> frozenset[int]:
    """`known` and the smallest of `new`, as many as can be written in that length.

    Shards end roughly in order, so gaps close and what was left out fits later.
    """
    waiting = sorted(set(new) - known)
    while waiting and len(write(known.union(waiting))) > characters_max:
        waiting = waiting[: len(waiting) // 2]
    return known.union(waiting)
