"""Ties: sums over the first of sorted examples that do not depend on the order of equal ones."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

__all__ = ["cumulative"]


def cumulative(
    key: Float64[np.ndarray, " n"], values: Float64[np.ndarray, "*s n"], at: Int64[np.ndarray, " q"]
) -> Float64[np.ndarray, "*s q"]:
    """The sums of the first 0 ≤ ``at`` ≤ n values, where equal keys share theirs: each counts as the mean of all.

    That is the mean over all orders of the equal ones.

    Args:
        key: what the examples are sorted by, ascending.
        values: in that order.
        at: how many.
    """
    total = np.concatenate([np.zeros((*values.shape[:-1], 1)), values.cumsum(axis=-1)], axis=-1)
    met = key[np.minimum(at, len(key) - 1)]
    start, stop = key.searchsorted(met, side="left"), key.searchsorted(met, side="right")
    share = (at - start) / (stop - start)
    return total[..., start] + share * (total[..., stop] - total[..., start])
