"""Direct: factorise a covariance once, to solve with it many times; one file a way to do it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from jacana.errors import NotPositiveDefinite

__all__ = ["Direct", "Factor", "row_sum_norm"]


class Factor(ABC):
    """A symmetric positive semidefinite A by some W with A⁻¹ = Wᵀ W; where A is singular, its pseudo-inverse.

    Attributes:
        norm: an upper bound of the largest eigenvalue of A: the scale of rounding errors.
    """

    norm: float

    @property
    @abstractmethod
    def rank(self) -> int:
        """The dimension of the range of A."""

    @abstractmethod
    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """A⁻¹ B."""

    @abstractmethod
    def half_solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "r k"]:
        """W B: its squares sum to the diagonal of Bᵀ A⁻¹ B."""

    @abstractmethod
    def complete(self, half: Float64[Tensor, "r k"]) -> Float64[Tensor, "n k"]:
        """Wᵀ H: what makes a half solution whole."""

    @property
    @abstractmethod
    def log_determinant(self) -> float:
        """Log |A| on its range."""

    @abstractmethod
    def inverse(self) -> Float64[Tensor, "n n"]:
        """A⁻¹."""


class Direct(ABC):
    """Options of one way to factorise.

    Attributes:
        squares: how many n by n matrices are held at once on the way to a factor, the matrix itself among them.
    """

    squares: ClassVar[int]

    @abstractmethod
    def factor(self, matrix: Float64[Tensor, "n n"]) -> Factor:
        """Factorise a symmetric matrix, which is left as it is.

        Raises:
            NotPositiveDefinite: it cannot be, beyond rounding.
        """

    @abstractmethod
    def extend(self, factor: Factor, cross: Float64[Tensor, "n m"], corner: Float64[Tensor, "m m"]) -> Factor:
        """The factor of [[A, C], [Cᵀ, D]] from one of A that this solver made.

        Raises:
            NotPositiveDefinite: as :meth:`factor`.
        """


def row_sum_norm(matrix: Float64[Tensor, "n n"]) -> float:
    """The largest absolute row sum, which bounds every eigenvalue.

    Raises:
        NotPositiveDefinite: it is not finite.
    """
    norm = float(matrix.abs().sum(1).max())
    if not math.isfinite(norm):
        raise NotPositiveDefinite(
            "the covariance has NaN or infinite entries: prior_std, noise_std or the Jacobian overflow; lower them."
        )
    return norm
