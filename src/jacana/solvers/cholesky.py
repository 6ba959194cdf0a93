"""Cholesky: A = L Lᵀ in float64, or a diagnosis; never a silent jitter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import NotPositiveDefinite

__all__ = ["Cholesky", "Factor"]


@final
@dataclass(frozen=True)
class Factor:
    """A = L Lᵀ, factorised once, to solve many times.

    Attributes:
        lower: L, lower triangular.
        norm: the largest absolute row sum of A, an upper bound of its largest eigenvalue: the scale of rounding errors.
    """

    lower: Float64[Tensor, "n n"]
    norm: float

    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """A⁻¹ B."""
        return torch.cholesky_solve(right, self.lower)

    def half_solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """L⁻¹ B."""
        return torch.linalg.solve_triangular(self.lower, right, upper=False)

    @property
    def log_determinant(self) -> float:
        """Log |A|."""
        return 2.0 * float(self.lower.diagonal().log().sum())

    def inverse(self) -> Float64[Tensor, "n n"]:
        """A⁻¹."""
        return torch.cholesky_inverse(self.lower)


@final
@dataclass(frozen=True)
class Cholesky:
    """The direct solver: n³/3 operations, n² numbers.

    Args:
        jitter: added to the diagonal, relative to its mean; zero by default, and never added unasked.

    Example:
        >>> import jacana, torch
        >>> factor = jacana.Cholesky().factor(torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
        >>> factor.solve(torch.tensor([[1.0], [2.0]], dtype=torch.float64)).flatten()
        tensor([0.0909, 0.6364], dtype=torch.float64)
    """

    jitter: float = 0.0

    def factor(self, matrix: Float64[Tensor, "n n"]) -> Factor:
        """Factorise a symmetric positive definite matrix; ``matrix`` is left as it is.

        Raises:
            NotPositiveDefinite: says where it fails and how large the rounding errors are.
        """
        norm = float(matrix.abs().sum(1).max())
        if self.jitter:
            matrix = matrix + torch.diag(self.jitter * matrix.diagonal().mean().expand(len(matrix)))
        lower, info = torch.linalg.cholesky_ex(matrix)
        if int(info) == 0 and math.isfinite(norm):
            return Factor(lower, norm)
        if not math.isfinite(norm):
            raise NotPositiveDefinite(
                "the covariance has NaN or infinite entries: prior_std, noise_std or the Jacobian overflow; lower them."
            )
        raise NotPositiveDefinite(
            f"the {len(matrix)} by {len(matrix)} matrix is not positive definite in float64: the factorisation fails "
            f"at row {int(info)}, with rounding errors of about {torch.finfo(matrix.dtype).eps * norm:.1e}."
        )

    def extend(self, factor: Factor, cross: Float64[Tensor, "n m"], corner: Float64[Tensor, "m m"]) -> Factor:
        """The factor of [[A, C], [Cᵀ, D]] from that of A: n²m + m³/3 operations instead of (n + m)³/3.

        Raises:
            NotPositiveDefinite: as :meth:`factor`.
        """
        n, m = cross.shape
        side = factor.half_solve(cross)
        last = self.factor(corner - side.T @ side)
        lower = torch.zeros(n + m, n + m, dtype=cross.dtype, device=cross.device)
        lower[:n, :n], lower[n:, :n], lower[n:, n:] = factor.lower, side.T, last.lower
        norm = max(
            factor.norm + float(cross.abs().sum(1).max()), float((corner.abs().sum(1) + cross.abs().sum(0)).max())
        )
        return Factor(lower, norm)
