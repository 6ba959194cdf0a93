"""Family: a set of Gaussians of the weights, each named by a curvature at every example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from jaxtyping import Float64
from torch import Tensor

from jacana.posteriors.sides import Precision, Side, Spread

__all__ = ["Family", "Spreads"]

Spreads = Callable[[Float64[Tensor, "n c r"], Precision], Spread]
"""From curvatures R Rᵀ, and the precision S⁻¹ + Jᵀ R Rᵀ J, to the Gaussian of a family."""


class Family(ABC):
    """A set of Gaussians of the weight change, each about any mean.

    The best one in a family has curvatures H_i = E H(f_i) from which its covariance follows; so whatever the family, a
    Gaussian is told by n c × c numbers and its mean.
    """

    @abstractmethod
    def spreads(self, side: Side) -> Spreads:
        """The covariances of the family over the examples of a side, which may keep what all of them need."""
