"""Pieces: of new examples, as many at once as their kernel with the data fits in memory."""

from __future__ import annotations

from collections.abc import Iterator

from jacana.linearization import Linearization, budget
from jacana.networks import Examples

__all__ = ["pieces"]


def pieces(lin: Linearization, x: Examples, rows: int) -> Iterator[Examples]:
    """Consecutive parts of ``x``: the features of the data, which have ``rows`` values, are computed anew for each."""
    c = lin.findings(x).n_outputs
    (_, least), *_ = lin.bounds(x)
    yield from x.batches(max(least, budget(lin.device) // (8 * 8 * rows * c)))
