"""FullCovariance: every Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float64
from torch import Tensor

from jacana.posteriors.families.family import Family, Spreads
from jacana.posteriors.sides import Precision, Side, Spread

__all__ = ["FullCovariance"]


@final
@dataclass(frozen=True)
class FullCovariance(Family):
    """Every Gaussian of the weights: the best has the covariance (S⁻¹ + Jᵀ H J)⁻¹ with H_i = E H(f_i).

    The bound that it reaches is the highest; with Gaussian noise it is the evidence. Costs a factorisation a step, and
    nothing beyond what :class:`~jacana.Laplace` holds.

    References:
        Opper and Archambeau 2009, The variational Gaussian approximation revisited: of all covariances only those with
        n numbers, here n blocks c × c, can be the best.

    Example:
        >>> import jacana
        >>> jacana.Variational(jacana.families.FullCovariance()) == jacana.Variational()
        True
    """

    def spreads(self, side: Side) -> Spreads:  # noqa: ARG002 - of the base
        return _itself


def _itself(root: Float64[Tensor, "n c r"], precision: Precision) -> Spread:  # noqa: ARG001 - of the base
    return precision
