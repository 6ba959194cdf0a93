"""Pivoted Cholesky: the kernel through columns that are drawn where it is not yet explained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from tqdm import tqdm

from jacana.operators import Covariance
from jacana.solvers.preconditioners.nystrom import affordable_rank, contraction, lower_root, valid_rank
from jacana.solvers.preconditioners.preconditioner import LowRank, Pivots, Preconditioner, Prepared, refuse_zero_noise

__all__ = ["PivotedCholesky"]

_ENOUGH = 0.01
"""What is left of the kernel's diagonal, relative to the noise, when more columns would not shorten the iteration."""


@final
@dataclass(frozen=True)
class PivotedCholesky(Preconditioner):
    """M = F Fᵀ + Σ from a partial Cholesky factorisation whose pivots are drawn in blocks.

    A block of examples is drawn with probability proportional to what is left of the diagonal of K, its columns come
    from the structured Gram, and what earlier ones explain is taken off. It ends at ``rank`` columns, or before, where
    what is left is far below the noise. Better than uniform columns where the data cluster. Columns are contracted in
    the network's dtype where what that hides, ε tr(K), is below the noise.

    Cost: r columns in a few passes over the network, 3 n r² operations, n · r numbers.

    Args:
        rank: the most columns; by default 12 √n, or fewer where they do not fit in a quarter of the free memory.
        seed: of the draw.

    References:
        Chen, Epperly, Tropp, Webber 2023, Randomly pivoted Cholesky (arXiv 2207.06503), algorithm 4.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> method = jacana.FunctionSpace(jacana.CG(preconditioner=jacana.preconditioners.PivotedCholesky(30)))
        >>> x = torch.linspace(-1, 1, 200).unsqueeze(1)
        >>> post = jacana.TangentGP(net).condition(x, x.sin(), noise_std=0.1, method=method)
    """

    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        valid_rank(self.rank)

    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared:
        refuse_zero_noise(covariance)
        n, together = len(covariance.noise), covariance.rows_together
        rank = affordable_rank(covariance) if self.rank is None else min(self.rank, n)
        source = torch.Generator().manual_seed(self.seed)
        diagonal = covariance.kernel.precise_diagonal().clamp_min(0.0)
        left, dtype = diagonal.clone(), contraction(covariance, diagonal)
        whole = torch.empty(n, _rounded(rank, together), dtype=torch.float64, device=left.device)
        root = whole.new_zeros(whole.shape[1], whole.shape[1])
        chosen = torch.zeros(0, dtype=torch.int64, device=left.device)
        bar = tqdm(total=rank, desc="preconditioner", unit="column", delay=1.0, leave=False, disable=not progress)
        with bar:
            for size in _sizes(rank, together):
                weights = (left / covariance.noise).view(-1, together).sum(1).cpu()
                if float(weights.sum()) <= _ENOUGH * n:
                    break
                count = min(size // together, int((weights > 0.0).sum()))
                groups = torch.multinomial(weights, count, generator=source).sort().values
                index = (groups.unsqueeze(1) * together + torch.arange(together)).flatten().to(left.device)
                columns = covariance.kernel.columns(index, dtype)
                have, stop = len(chosen), len(chosen) + len(index)
                before = root[have:stop, :have] = whole[index, :have]
                columns.addmm_(whole[:, :have], before.T, alpha=-1.0)
                lower = lower_root(columns[index], torch.finfo(dtype).eps * diagonal[index].sum())
                root[have:stop, have:stop] = lower
                new = whole[:, have:stop]
                new.copy_(torch.linalg.solve_triangular(lower.T, columns, upper=True, left=False))
                chosen = torch.cat([chosen, index])
                left = (left - new.square().sum(1)).clamp_min_(0.0)
                left[index] = 0.0
                bar.update(len(index))
        r = len(chosen)
        pivots = Pivots(chosen, root[:r, :r], float((left / covariance.noise).mean()), n)
        return LowRank(whole[:, :r], covariance.noise, pivots)


def _rounded(rank: int, together: int) -> int:
    return -(-rank // together) * together


def _sizes(rank: int, together: int) -> Iterator[int]:
    """An eighth, an eighth, a quarter and a half of the rank, in whole examples."""
    have, whole = 0, _rounded(rank, together)
    while have < whole:
        size = min(whole - have, max(together, _rounded(max(have, rank // 8, 1), together)))
        yield size
        have += size
