"""Side: weight changes by coordinates of one side, and what curvatures at the data make of their prior."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.joseph import EPS
from jacana.posteriors.observations import Observations

__all__ = ["Precision", "Side", "Spread"]


class Side(ABC):
    """The prior δ ~ N(0, S) of the weights at n examples, in coordinates u of an inner product space.

    On the side of the data δ = S Jᵀ u, on that of the parameters δ = S^½ u; ⟨u, v⟩ = δ(u)ᵀ S⁻¹ δ(v) on both. What is
    written in coordinates is then the same for both: the slope of a log posterior with gradient g at f is
    ``pull(g) − u``, and Newton's step from there ``at(H).solve`` of it.

    Attributes:
        observations: n examples with what was seen there.
    """

    def __init__(self, observations: Observations) -> None:
        self.observations = observations

    @property
    def tolerance(self) -> float:
        """What a step may still gain of an objective, relative to it, where rounding or a solver hides more."""
        return 1e-13

    def rounding(self, u: Float64[Tensor, " q"]) -> float:
        """What of ⟨u, u⟩ is rounding."""
        return EPS * self.inner(u, u)

    @abstractmethod
    def zero(self) -> Float64[Tensor, " q"]:
        """The coordinates of no change."""

    @abstractmethod
    def values(self, u: Float64[Tensor, " q"]) -> Float64[Tensor, "n c"]:
        """J δ(u)."""

    @abstractmethod
    def pull(self, gradient: Float64[Tensor, "n c"]) -> Float64[Tensor, " q"]:
        """The coordinates of S Jᵀ g."""

    @abstractmethod
    def weights(self, u: Float64[Tensor, " q"]) -> Float64[Tensor, " p"]:
        """δ(u)."""

    @abstractmethod
    def shares(self, u: Float64[Tensor, " q"], v: Float64[Tensor, " q"]) -> Float64[Tensor, " l"]:
        """The summands of ⟨u, v⟩ that each group of parameters with one scale gives."""

    def inner(self, u: Float64[Tensor, " q"], v: Float64[Tensor, " q"]) -> float:
        """⟨u, v⟩."""
        return float(self.shares(u, v).sum())

    @abstractmethod
    def narrowed(self, observations: Observations, factor: float) -> Side:
        """The same examples under a prior ``factor`` times as wide, which ``observations`` has."""

    @abstractmethod
    def at(self, root: Float64[Tensor, "n c r"]) -> Precision:
        """The precision S⁻¹ + Jᵀ H J for curvatures H = R Rᵀ."""


class Spread(ABC):
    """A Gaussian of the weight change about its mean."""

    @property
    @abstractmethod
    def log_determinant(self) -> Estimate:
        """Log |S| − log |Σ|, how much narrower than the prior it is; of a precision log |I + S^½ F S^½|."""

    @abstractmethod
    def fitted(self) -> Float64[Tensor, "n c c"]:
        """The covariance of f at each of the examples."""

    @abstractmethod
    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        """The variance of f at others."""

    @abstractmethod
    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        """The covariance of f at each of others."""

    @abstractmethod
    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        """The joint covariance of f at others."""

    @abstractmethod
    def deviations(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        """Samples of N(0, Σ)."""


class Precision(Spread):
    """S⁻¹ + Jᵀ H J, factorised: what is left of the prior's covariance where curvatures H were seen."""

    @abstractmethod
    def solve(self, u: Float64[Tensor, " q"]) -> Float64[Tensor, " q"]:
        """The coordinates of (S⁻¹ + F)⁻¹ S⁻¹ δ(u)."""

    @property
    @abstractmethod
    def freedom(self) -> Float64[Tensor, " l"]:
        """The parameters that the data determine, tr F (S⁻¹ + F)⁻¹, of each group with one scale."""

    def within(self, rtol: float) -> Spread:  # noqa: ARG002 - it may be exact
        """This, or one that costs less for many others and is larger by no more than ``rtol`` of the prior."""
        return self
