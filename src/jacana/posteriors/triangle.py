"""Triangle: Bayesian least squares by orthogonal steps on rows that come block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = ["Triangle"]


@final
@dataclass(frozen=True)
class Triangle:
    """The posterior of w ~ N(0, I) given b = X w + N(0, I): Rᵀ R = I + XᵀX and R ŵ = z.

    XᵀX, whose condition number is the square of X's, is never formed.

    Attributes:
        matrix: [R z].
        misfit: ‖b − X ŵ‖² + ‖ŵ‖².

    References:
        Golub and Van Loan 2013, Matrix Computations, section 5.3.3.
    """

    matrix: Float64[Tensor, "p q"]
    misfit: float = 0.0

    @classmethod
    def prior(cls, p: int, device: torch.device) -> Triangle:
        """Before any rows."""
        return cls(torch.eye(p, p + 1, dtype=torch.float64, device=device))

    def after(self, blocks: Iterable[Float64[Tensor, "k q"]]) -> Triangle:
        """Given the rows [X b] too, in blocks."""
        p = len(self.matrix)
        waiting, misfit = [self.matrix], self.misfit
        for rows in blocks:
            waiting.append(rows)
            if sum(map(len, waiting)) > 3 * p:  # each step costs p³ and more by itself
                waiting, misfit = _reduced(waiting, misfit)
        if len(waiting) > 1:
            waiting, misfit = _reduced(waiting, misfit)
        return Triangle(waiting[0], misfit)

    @property
    def root(self) -> Float64[Tensor, "p p"]:
        """R."""
        return self.matrix[:, :-1]

    @property
    def mean(self) -> Float64[Tensor, "p 1"]:
        """ŵ."""
        return torch.linalg.solve_triangular(self.root, self.matrix[:, -1:], upper=True)

    @property
    def log_determinant(self) -> float:
        """Log |I + XᵀX|."""
        return 2.0 * float(self.root.diagonal().abs().log().sum())

    def half_solve(self, right: Float64[Tensor, "p k"]) -> Float64[Tensor, "p k"]:
        """R⁻ᵀ B: its Gram is Bᵀ (I + XᵀX)⁻¹ B."""
        return torch.linalg.solve_triangular(self.root.T, right, upper=False)

    def spread(self, noise: Float64[Tensor, "p k"]) -> Float64[Tensor, "p k"]:
        """R⁻¹ ξ: for ξ ~ N(0, I) the deviations of w."""
        return torch.linalg.solve_triangular(self.root, noise, upper=True)


def _reduced(waiting: list[Tensor], misfit: float) -> tuple[list[Tensor], float]:
    p = len(waiting[0])
    reduced = torch.linalg.qr(torch.cat(waiting), mode="r").R
    return [reduced[:p]], misfit + float(reduced[p:, p].square().sum())
