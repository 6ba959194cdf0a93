"""Solution: what an iterative solver found, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float64
from torch import Tensor

__all__ = ["Solution"]


@final
@dataclass(frozen=True)
class Solution:
    """X with A X ≈ B.

    Attributes:
        x: (n, k).
        remainder: B − A X, computed anew.
        relative_residuals: ‖B − A X‖ / ‖B‖ of each column, zero where B is.
        steps: of the iteration.
        products: columns that A was multiplied with, those of the check included.
        seconds: of the solution; a preconditioner's own are apart.
        converged: whether every column reached the tolerance.
        is_precise: whether the remainder is of products that were contracted in float64.

    Example:
        >>> import jacana, torch
        >>> x = torch.linspace(-1, 1, 50).unsqueeze(1)
        >>> method = jacana.FunctionSpace(jacana.CG(rtol=1e-3))
        >>> post = jacana.TangentGP(torch.nn.Linear(1, 1)).condition(x, x, noise_std=0.1, method=method)
        >>> post.solution.converged, bool(post.solution.relative_residuals <= 1e-3)
        (True, True)
    """

    x: Float64[Tensor, "n k"]
    remainder: Float64[Tensor, "n k"]
    relative_residuals: Float64[Tensor, " k"]
    steps: int
    products: int
    seconds: float
    converged: bool
    is_precise: bool = True

    def __repr__(self) -> str:
        worst = float(self.relative_residuals.max()) if self.relative_residuals.numel() else 0.0
        state = "converged" if self.converged else "not converged"
        return (
            f"Solution({state}: relative residual {worst:.1e} after {self.steps} steps, {self.products} products, "
            f"{self.seconds:.3g} s)"
        )
