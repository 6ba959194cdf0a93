"""Preconditioner: a matrix M near A = K + Σ with which one can solve at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.operators import Covariance, standard_normal

__all__ = ["LowRank", "Pivots", "Preconditioner", "Prepared", "Rows", "refuse_zero_noise"]

_GROWN = 2
"""M is carried on to so many times the rows that it was made for, then made anew."""

_LEFT = 4.0
"""What it leaves of new rows may be so much more than what it left of its own."""

Rows = Callable[[Int64[Tensor, " k"]], Float64[Tensor, "m k"]]
"""K between new rows and some of those that there are."""


class Prepared(ABC):
    """M for one covariance.

    Attributes:
        rank: of what approximates the kernel.
        is_below: whether A − M is positive semidefinite, so that rᵀM⁻¹r bounds rᵀA⁻¹r.
        freedom: tr(L (L + Σ)⁻¹) of the approximation L: no more than the degrees of freedom that the data determine.
    """

    rank: int
    is_below: bool = False
    freedom: float = 0.0

    @abstractmethod
    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """M⁻¹ B."""

    @property
    @abstractmethod
    def log_determinant(self) -> float:
        """Log |M|."""

    @abstractmethod
    def sample(self, k: int, generator: torch.Generator | None) -> Float64[Tensor, "n k"]:
        """Columns drawn from N(0, M)."""

    def rescaled(self, factor: float, noise: Float64[Tensor, " n"]) -> Prepared | None:  # noqa: ARG002 - most cannot
        """M of ``factor`` · K + Σ for another noise, if it is had without K."""
        return None

    def extended(
        self,
        rows: Rows,  # noqa: ARG002 - most cannot
        diagonal: Float64[Tensor, " m"],  # noqa: ARG002
        noise: Float64[Tensor, " m"],  # noqa: ARG002
    ) -> Prepared | None:
        """M with m rows more after these, if a few columns give it and it is as good for them.

        Args:
            rows: of K that are new, in the columns asked for.
            diagonal: of K at the new rows.
            noise: their variances.
        """
        return None


class Preconditioner(ABC):
    """Options of one way to approximate a covariance."""

    @abstractmethod
    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared:
        """M for this covariance."""


@dataclass(frozen=True)
class Pivots:
    """What F was made of: K[:, index] = F Lᵀ.

    Attributes:
        index: the columns.
        root: L, lower triangular.
        left: mean of what F leaves of K's diagonal, over the noise.
        n: rows that F was made for.
    """

    index: Int64[Tensor, " r"]
    root: Float64[Tensor, "r r"]
    left: float
    n: int


class LowRank(Prepared):
    """M = F Fᵀ + Σ, with F (n, r) and F Fᵀ ≤ K.

        M⁻¹ = Σ^-½ (I − G (I + GᵀG)⁻¹ Gᵀ) Σ^-½,     G = Σ^-½ F

    References:
        Woodbury 1950, Inverting modified matrices.
    """

    is_below = True

    def __init__(
        self, factor: Float64[Tensor, "n r"], noise: Float64[Tensor, " n"], pivots: Pivots | None = None
    ) -> None:
        self.rank = factor.shape[1]
        self._pivots = pivots
        self._noise = noise
        self._std = noise.sqrt().unsqueeze(1)
        self._factor = factor.div_(self._std)  # in place: it may be most of the memory
        inner = factor.T @ factor
        inner.diagonal().add_(1.0)
        self._lower = torch.linalg.cholesky(inner)
        self.freedom = self.rank - float(torch.cholesky_inverse(self._lower).diagonal().sum())

    def rescaled(self, factor: float, noise: Float64[Tensor, " n"]) -> Prepared:
        return LowRank(self._factor * (math.sqrt(factor) * self._std), noise)

    def extended(self, rows: Rows, diagonal: Float64[Tensor, " m"], noise: Float64[Tensor, " m"]) -> Prepared | None:
        pivots = self._pivots
        if (
            pivots is None
            or not self.rank
            or len(self._noise) + len(noise) > _GROWN * pivots.n
            or bool((noise <= 0.0).any())
        ):
            return None
        more = torch.linalg.solve_triangular(pivots.root.T, rows(pivots.index), upper=True, left=False)
        left = (diagonal - more.square().sum(1)).clamp_min(0.0)
        if float((left / noise).mean()) > max(1.0, _LEFT * pivots.left):
            return None
        return LowRank(torch.cat([self._factor * self._std, more]), torch.cat([self._noise, noise]), pivots)

    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        scaled = right / self._std
        inner = torch.cholesky_solve(self._factor.T @ scaled, self._lower)
        return scaled.addmm_(self._factor, inner, alpha=-1.0).div_(self._std)

    @property
    def log_determinant(self) -> float:
        return float(self._noise.log().sum() + 2.0 * self._lower.diagonal().log().sum())

    def sample(self, k: int, generator: torch.Generator | None) -> Float64[Tensor, "n k"]:
        n = len(self._noise)
        drawn = standard_normal(n + self.rank, k, generator=generator, device=self._noise.device)
        return self._std * (drawn[:n] + self._factor @ drawn[n:])


def refuse_zero_noise(covariance: Covariance) -> None:
    """Refuse what a preconditioner of low rank would divide by.

    Raises:
        InvalidOption: some noise is zero.
    """
    if bool((covariance.noise <= 0.0).any()):
        raise InvalidOption(
            "preconditioner: some noise is zero, and a preconditioner of low rank divides by it; take "
            "jacana.preconditioners.Diagonal(), or None."
        )
