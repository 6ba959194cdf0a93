"""Joseph's form: a posterior covariance as a sum of squares, where a difference would be lost to rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.linearization import budget, pull, require
from jacana.networks import Examples
from jacana.posteriors.observations import Model

__all__ = ["EPS", "TRUSTED", "joseph_root", "joseph_variance"]

EPS = torch.finfo(torch.float64).eps
TRUSTED = 1e4
"""A difference is used where it is this many times its rounding error."""

Pull = Callable[[Float64[Tensor, "nc k"]], Float64[Tensor, "p k"]]


def joseph_variance(
    model: Model,
    x: Examples,
    weights: Float64[Tensor, "nc mc"],
    spread: Float64[Tensor, "q mc"],
    rows: Tensor,
    pulled: Pull,
) -> Float64[Tensor, " k"]:
    """The variance of f* − Cᵀy at the given rows, as many at once as fit in memory."""
    at_once = max(1, budget(weights.device) // (4 * 8 * model.lin.n_parameters))
    roots = (joseph_root(model, x, weights, spread, pulled, some) for some in torch.split(rows, at_once))
    return torch.cat([root.square().sum(0) for root in roots])


def joseph_root(
    model: Model,
    x: Examples,
    weights: Float64[Tensor, "nc mc"],
    spread: Float64[Tensor, "q mc"],
    pulled: Pull,
    rows: Tensor | None = None,
) -> Float64[Tensor, "rows k"]:
    """R with Rᵀ R the covariance of f* − Cᵀy: S^½(J*ᵀ − JᵀC) above Σ^½ C. For C = (K + Σ)⁻¹ K* it is the posterior's.

    Args:
        model: the prior.
        x: where f* is.
        weights: C.
        spread: Σ^½ C.
        pulled: U ↦ JᵀU of the observed examples.
        rows: which values f* are wanted; by default all.

    Raises:
        InsufficientMemory: a column a value, of all parameters, does not fit.

    References:
        Bucy and Joseph 1968, Filtering for Stochastic Processes.
    """
    if rows is None:
        rows = torch.arange(weights.shape[1], device=weights.device)
    require(3 * 8 * model.lin.n_parameters * len(rows), weights.device,
            f"the joint covariance of {len(rows):,} values next to the data",
            "ask for fewer examples at once, or for .variance.")  # fmt: skip
    units = torch.zeros(weights.shape[1], len(rows), dtype=torch.float64, device=weights.device)
    units[rows, torch.arange(len(rows), device=weights.device)] = 1.0
    chosen = weights[:, rows]
    gap = model.prior.vector(weights.device).unsqueeze(1) * (pull(model.lin, x, units) - pulled(chosen))
    return torch.cat([gap, spread[:, rows]])
