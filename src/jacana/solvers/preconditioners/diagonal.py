"""Diagonal: M = diag(K) + Σ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.operators import Covariance, standard_normal
from jacana.solvers.preconditioners.preconditioner import Preconditioner, Prepared

__all__ = ["Diagonal"]


@final
@dataclass(frozen=True)
class Diagonal(Preconditioner):
    """M = diag(K) + Σ: for data of very different size; it does nothing against large eigenvalues.

    Cost: the diagonal of the kernel.

    Example:
        >>> import jacana
        >>> jacana.CG(preconditioner=jacana.preconditioners.Diagonal()).preconditioner
        Diagonal()
    """

    def prepare(self, covariance: Covariance, *, progress: bool = False) -> Prepared:  # noqa: ARG002 - of the base
        return _Diagonal(covariance.diagonal())


class _Diagonal(Prepared):
    def __init__(self, diagonal: Float64[Tensor, " n"]) -> None:
        self.rank = 0
        self._diagonal = diagonal.unsqueeze(1)

    def solve(self, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return right / self._diagonal

    @property
    def log_determinant(self) -> float:
        return float(self._diagonal.log().sum())

    def sample(self, k: int, generator: torch.Generator | None) -> Float64[Tensor, "n k"]:
        n, device = len(self._diagonal), self._diagonal.device
        return self._diagonal.sqrt() * standard_normal(n, k, generator=generator, device=device)
