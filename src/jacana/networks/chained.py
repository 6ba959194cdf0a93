"""Chained: examples, and then others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from jacana.networks.examples import Examples, joined
from jacana.networks.source import Source

__all__ = ["Chained", "followed_by"]


@final
class Chained(Source):
    """The examples of one and then of another, each read as it is read alone.

    Args:
        first: some of them.
        second: the others.

    Raises:
        InvalidData: the two have different structures.
    """

    def __init__(self, first: Examples | Source, second: Examples | Source) -> None:
        joined([first.head[:1], second.head[:1]])  # refuses what does not go together
        self._parts = (first, second)

    @property
    def head(self) -> Examples:
        return self._parts[0].head

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def batches(self, size: int) -> Iterator[Examples]:
        for part in self._parts:
            yield from part.batches(size)


def followed_by(first: Examples | Source, second: Examples | Source) -> Examples | Source:
    """One and then the other; in memory where both are."""
    if isinstance(first, Examples) and isinstance(second, Examples):
        return first.followed_by(second)
    return Chained(first, second)
