"""Form bound: what a remainder E = B − A X may hide, EᵀA⁻¹E, from above."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.solvers.preconditioners import Prepared

__all__ = ["form_bound", "form_bounds"]

_DIGITS = 8.0 * torch.finfo(torch.float64).eps
"""How well eᵀM⁻¹e is known, relative to eᵀΣ⁻¹e, of differences of whose parts it is made."""


def form_bounds(
    prepared: Prepared | None,
    noise: Float64[Tensor, " n"],
    remainder: Float64[Tensor, "n k"],
    conditioned: Float64[Tensor, "n k"] | None = None,
) -> Float64[Tensor, " k"]:
    """eᵀA⁻¹e ≤ eᵀM⁻¹e for each column where M ≤ A = K + Σ, up to its rounding, and eᵀΣ⁻¹e always.

    Args:
        prepared: M, or None where there is none.
        noise: Σ; infinite bounds where it is zero and there is no M.
        remainder: E.
        conditioned: M⁻¹E, if it is there already.
    """
    bound = torch.where(remainder == 0.0, 0.0, remainder.square() / noise.unsqueeze(1)).sum(0)
    if prepared is None or not prepared.is_below:
        return bound
    found = (remainder * (prepared.solve(remainder) if conditioned is None else conditioned)).sum(0)
    return torch.minimum(found.clamp_min(0.0) + _DIGITS * bound, bound)


def form_bound(
    prepared: Prepared | None, noise: Float64[Tensor, " n"], remainder: Float64[Tensor, "n k"]
) -> Float64[Tensor, "k k"]:
    """A matrix above EᵀA⁻¹E: EᵀM⁻¹E with its rounding on the diagonal where M ≤ A = K + Σ, or EᵀΣ⁻¹E."""
    weighted = remainder / noise.unsqueeze(1)
    if prepared is None or not prepared.is_below:
        return remainder.T @ weighted
    found = remainder.T @ prepared.solve(remainder)
    unknown = remainder.shape[1] * _DIGITS * (remainder * weighted).sum(0)
    return 0.5 * (found + found.T) + torch.diag(unknown)
