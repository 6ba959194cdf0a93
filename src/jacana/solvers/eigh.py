"""Eigh: A = U Λ Uᵀ in float64, for covariances that are singular, with what was left out said."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, NotConverged, NotPositiveDefinite
from jacana.solvers.direct import Direct, Factor, row_sum_norm

__all__ = ["Eigh", "EighFactor"]


@final
@dataclass(frozen=True)
class EighFactor(Factor):
    """A ≈ U Λ Uᵀ over the eigenvalues that were kept: W = Λ^-½ Uᵀ, and A⁻¹ is the pseudo-inverse.

    Attributes:
        matrix: A itself, to be extended.
        values: those kept, ascending.
        vectors: U, their eigenvectors.
        dropped: how many were taken for zero.
        rtol: below which share of the largest.
        norm: the largest absolute row sum of A.
    """

    matrix: Float64[Tensor, "n n"]
    values: Float64[Tensor, " r"]
    vectors: Float64[Tensor, "n r"]
    dropped: int
    rtol: float
    norm: float

    @property
    def rank(self) -> int:
        return len(self.values)

    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """The X of least norm among those with the least ‖A X − B‖.

        Warns:
            NotConverged: where that is not zero: a share of over √rtol of a column lies outside the range of A. Less
                of it says nothing: a column of the kernel itself, whose eigenvalue was dropped, may have as much.
        """
        inside = self.vectors.T @ right
        if self.dropped:
            outside = torch.linalg.vector_norm(right - self.vectors @ inside, dim=0)
            size = torch.linalg.vector_norm(right, dim=0)
            far = outside > self.rtol**0.5 * size
            if bool(far.any()):
                worst = float((outside[far] / size[far]).max())
                warnings.warn(
                    f"Eigh: {worst:.1e} of the right-hand side, in {int(far.sum())} of {len(far)} columns, is outside "
                    f"the range of the covariance, of which {self.dropped} of {len(self.matrix)} eigenvalues are zero: "
                    "observations contradict each other (repeated examples with different targets?), and the nearest "
                    "that do not are fitted. Give a noise_std above zero.",
                    NotConverged,
                    stacklevel=3,
                )
        return self.vectors @ (inside / self.values.unsqueeze(1))

    def half_solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "r k"]:
        return (self.vectors.T @ right) / self.values.sqrt().unsqueeze(1)

    def complete(self, half: Float64[Tensor, "r k"]) -> Float64[Tensor, "n k"]:
        return self.vectors @ (half / self.values.sqrt().unsqueeze(1))

    @property
    def log_determinant(self) -> float:
        return float(self.values.log().sum())

    def inverse(self) -> Float64[Tensor, "n n"]:
        return (self.vectors / self.values) @ self.vectors.T


@final
@dataclass(frozen=True)
class Eigh(Direct):
    """The direct solver for covariances that may be singular: A = U Λ Uᵀ, eigenvalues near zero left out.

        A⁺ = U₊ Λ₊⁻¹ U₊ᵀ,     Λ₊ = those of Λ above rtol · λ_max

    Choose it for observations without noise where examples are repeated or outnumber the parameters. Solutions are
    those of least norm; where targets contradict each other the nearest that do not are fitted, and ``NotConverged``
    says so. What of a new example's kernel is outside the range is left unexplained, so that a variance is never below
    the exact one. The evidence is a density on the range of A, not to be compared between kernels of different rank.
    Leave-one-out has no closed form then, and is refused.

    Cost: about 9 n³ operations, ten times :class:`Cholesky`'s and more, and 4 n² numbers.

    Args:
        rtol: eigenvalues below this share of the largest are taken for zero; by default n · eps, what rounding makes
            of zeros.

    Raises:
        InvalidOption: ``rtol`` not from zero to one.

    References:
        Golub and Van Loan 2013, Matrix Computations, sections 5.5.2 and 8.3.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.tensor([[0.0], [0.5], [0.5], [1.0]])
        >>> method = jacana.FunctionSpace(jacana.Eigh())
        >>> post = jacana.TangentGP(net).condition(x, x.sin(), noise_std=0.0, method=method)
        >>> bool(torch.allclose(post.predict(x).mean, x.sin().double(), atol=1e-4))
        True
    """

    squares: ClassVar[int] = 4

    rtol: float | int | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None and (
            isinstance(self.rtol, bool) or not isinstance(self.rtol, int | float) or not 0.0 <= self.rtol < 1.0
        ):
            raise InvalidOption(f"rtol: got {self.rtol!r}; expected a share from 0 to below 1, or None for n · eps.")

    def factor(self, matrix: Float64[Tensor, "n n"]) -> EighFactor:
        """Factorise a symmetric positive semidefinite matrix; ``matrix`` is kept, and left as it is.

        Raises:
            NotPositiveDefinite: an eigenvalue is negative beyond rounding.
        """
        norm = row_sum_norm(matrix)
        values, vectors = torch.linalg.eigh(matrix)
        rounding = len(matrix) * torch.finfo(matrix.dtype).eps
        rtol = rounding if self.rtol is None else float(self.rtol)
        size = float(values.abs().max())
        if float(values[0]) < -max(rtol, rounding) * size:
            raise NotPositiveDefinite(
                f"the {len(matrix)} by {len(matrix)} matrix has an eigenvalue of {float(values[0]):.1e}, with rounding "
                f"errors of about {rounding * size:.1e}: it is no covariance."
            )
        dropped = int((values <= rtol * size).sum())
        return EighFactor(matrix, values[dropped:], vectors[:, dropped:], dropped, max(rtol, rounding), norm)

    def extend(self, factor: Factor, cross: Float64[Tensor, "n m"], corner: Float64[Tensor, "m m"]) -> EighFactor:
        """The factor of [[A, C], [Cᵀ, D]], from the start: eigenvectors are not extended for less.

        Raises:
            NotPositiveDefinite: as :meth:`factor`.
        """
        if not isinstance(factor, EighFactor):
            raise TypeError(f"factor: got {type(factor).__name__}; expected one that an Eigh solver made.")
        return self.factor(torch.cat([torch.cat([factor.matrix, cross], dim=1), torch.cat([cross.T, corner], dim=1)]))
