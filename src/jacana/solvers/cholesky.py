"""Cholesky: A = L Lᵀ in float64, or a diagnosis; never a silent jitter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import NotPositiveDefinite
from jacana.solvers.direct import Direct, Factor, row_sum_norm

__all__ = ["Cholesky", "CholeskyFactor"]


@final
@dataclass(frozen=True)
class CholeskyFactor(Factor):
    """A = L Lᵀ, factorised once, to solve many times: W = L⁻¹.

    Attributes:
        lower: L, lower triangular.
        norm: the largest absolute row sum of A, an upper bound of its largest eigenvalue: the scale of rounding errors.
    """

    lower: Float64[Tensor, "n n"]
    norm: float

    @property
    def rank(self) -> int:
        return len(self.lower)

    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return torch.cholesky_solve(right, self.lower)

    def half_solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return torch.linalg.solve_triangular(self.lower, right, upper=False)

    def complete(self, half: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return torch.linalg.solve_triangular(self.lower.T, half, upper=True)

    @property
    def log_determinant(self) -> float:
        return 2.0 * float(self.lower.diagonal().log().sum())

    def inverse(self) -> Float64[Tensor, "n n"]:
        return torch.cholesky_inverse(self.lower)


@final
@dataclass(frozen=True)
class Cholesky(Direct):
    """The direct solver: n³/3 operations, n² numbers.

    Args:
        jitter: added to the diagonal, relative to its mean; zero by default, and never added unasked.

    Example:
        >>> import jacana, torch
        >>> factor = jacana.Cholesky().factor(torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
        >>> factor.solve(torch.tensor([[1.0], [2.0]], dtype=torch.float64)).flatten()
        tensor([0.0909, 0.6364], dtype=torch.float64)
    """

    squares: ClassVar[int] = 2

    jitter: float = 0.0

    def factor(self, matrix: Float64[Tensor, "n n"]) -> CholeskyFactor:
        """Factorise a symmetric positive definite matrix; ``matrix`` is left as it is.

        Raises:
            NotPositiveDefinite: says where it fails and how large the rounding errors are.
        """
        norm = row_sum_norm(matrix)
        if self.jitter:
            matrix = matrix + torch.diag(self.jitter * matrix.diagonal().mean().expand(len(matrix)))
        lower, info = torch.linalg.cholesky_ex(matrix)
        if int(info) == 0:
            return CholeskyFactor(lower, norm)
        raise NotPositiveDefinite(
            f"the {len(matrix)} by {len(matrix)} matrix is not positive definite in float64: the factorisation fails "
            f"at row {int(info)}, with rounding errors of about {torch.finfo(matrix.dtype).eps * norm:.1e}."
        )

    def extend(self, factor: Factor, cross: Float64[Tensor, "n m"], corner: Float64[Tensor, "m m"]) -> CholeskyFactor:
        """The factor of [[A, C], [Cᵀ, D]] from that of A: n²m + m³/3 operations instead of (n + m)³/3.

        Raises:
            NotPositiveDefinite: as :meth:`factor`.
        """
        if not isinstance(factor, CholeskyFactor):
            raise TypeError(f"factor: got {type(factor).__name__}; expected one that a Cholesky solver made.")
        n, m = cross.shape
        side = factor.half_solve(cross)
        last = self.factor(corner - side.T @ side)
        lower = torch.zeros(n + m, n + m, dtype=cross.dtype, device=cross.device)
        lower[:n, :n], lower[n:, :n], lower[n:, n:] = factor.lower, side.T, last.lower
        norm = max(
            factor.norm + float(cross.abs().sum(1).max()), float((corner.abs().sum(1) + cross.abs().sum(0)).max())
        )
        return CholeskyFactor(lower, norm)
