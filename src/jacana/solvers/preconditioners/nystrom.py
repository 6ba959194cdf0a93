"""Nyström: the kernel through some of its columns, drawn uniformly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.linearization import budget
from jacana.operators import Covariance
from jacana.solvers.preconditioners.preconditioner import LowRank, Preconditioner, Prepared, refuse_zero_noise

__all__ = ["Nystrom", "affordable_rank", "contraction", "lower_root", "valid_rank"]

_RANK = 12.0
_ROWS = 4096
_LOOK = 32
"""Examples that the size of the kernel is learned from."""


@final
@dataclass(frozen=True)
class Nystrom(Preconditioner):
    """M = C W⁻¹ Cᵀ + Σ, with C = K[:, S] and W = K[S, S] for a random set S of examples.

    The columns come from the structured Gram: one pass over the network for all of them, where
    :class:`PivotedCholesky` takes five. Choose it where passes are long, as in convolutional networks of several
    outputs, and give it a larger rank there: steps fall as √(n / r), and each costs as much as dozens of columns.
    Columns are contracted in the network's dtype where what that hides, ε tr(K), is below the noise.

    Cost: r columns, 2 n r² operations, n · r numbers.

    Args:
        rank: r, the columns; by default 12 √n, or fewer where they do not fit in a quarter of the free memory.
        seed: of the draw.

    References:
        Williams and Seeger 2001, Using the Nyström method to speed up kernel machines.
        Frangella, Tropp, Udell 2023, Randomized Nyström preconditioning (arXiv 2110.02820).

    Example:
        >>> import jacana
        >>> jacana.CG(preconditioner=jacana.preconditioners.Nystrom(rank=500)).preconditioner.rank
        500
    """

    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        valid_rank(self.rank)

    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared:  # noqa: ARG002 - of the base
        refuse_zero_noise(covariance)
        n, together = len(covariance.noise), covariance.rows_together
        rank = affordable_rank(covariance) if self.rank is None else min(self.rank, n)
        source = torch.Generator().manual_seed(self.seed)
        groups = torch.randperm(n // together, generator=source)[: max(1, -(-rank // together))].sort().values
        index = (groups.unsqueeze(1) * together + torch.arange(together)).flatten().to(covariance.device)
        dtype = contraction(covariance, covariance.kernel.diagonal_at(index[: _LOOK * together]))
        columns = covariance.kernel.columns(index, dtype)
        lower = lower_root(columns[index], torch.finfo(dtype).eps * columns[index].diagonal().sum())
        for rows in torch.split(columns, _ROWS):
            rows.copy_(torch.linalg.solve_triangular(lower.T, rows, upper=True, left=False))
        return LowRank(columns, covariance.noise)


def affordable_rank(covariance: Covariance) -> int:
    """12 √n, or what fits."""
    n = len(covariance.noise)
    return max(1, min(n, int(_RANK * n**0.5), budget(covariance.device) // (2 * 8 * n)))


def contraction(covariance: Covariance, diagonal: Float64[Tensor, " k"]) -> torch.dtype:
    """The kernel's own dtype where what its rounding hides of K is below the noise, else float64.

    A root of W needs ε tr(W) on the diagonal, and that hides of K what is below n/r ε tr(W) = ε tr(K).

    Args:
        covariance: K + Σ.
        diagonal: of K, some of it.
    """
    own = covariance.kernel.dtype
    trace = len(covariance.noise) * float(diagonal.mean())
    return own if torch.finfo(own).eps * trace <= float(covariance.noise.min()) else torch.float64


def lower_root(square: Float64[Tensor, "r r"], rounded: Float64[Tensor, ""]) -> Float64[Tensor, "r r"]:
    """L with L Lᵀ = W + ν I: M need not be exact.

    ν is what W was rounded by, or more. A smaller one leaves pivots that are rounding alone, and M that is above K.

    Args:
        square: W.
        rounded: ε tr(K[S, S]), by the dtype that K was contracted in, where W is what earlier columns leave of that.
    """
    shift = rounded.clamp_min(torch.finfo(torch.float64).tiny)
    while True:
        lower, failed = torch.linalg.cholesky_ex(square + torch.diag(shift.expand(len(square))))
        if not int(failed):
            return lower
        shift = 10.0 * shift


def valid_rank(rank: object) -> None:
    """Refuse what is no rank.

    Raises:
        InvalidOption: not a positive whole number or None.
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise InvalidOption(f"rank: got {rank!r}; expected a positive whole number of columns, or None.")
