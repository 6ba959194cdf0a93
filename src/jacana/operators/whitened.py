"""The Fisher matrix in units of the prior, as an operator: what a posterior over the weights is solved with."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from jacana.likelihoods import Likelihood
from jacana.linearization import Prior, Products
from jacana.operators.operator import Operator

__all__ = ["WhitenedFisher"]


@final
class WhitenedFisher(Operator):
    """S^½ F S^½ = S^½ Jᵀ H J S^½, shape (p, p): the precision of S^-½ δ is one more, I + S^½ F S^½.

    Args:
        products: with J, of the data.
        prior: S.
        likelihood: gives H.
        at: function values (n, c) that H is taken at.
    """

    def __init__(self, products: Products, prior: Prior, likelihood: Likelihood, at: Float64[Tensor, "n c"]) -> None:
        self._products, self._likelihood, self._at = products, likelihood, at
        self._std = prior.vector(products.lin.device).unsqueeze(1)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._std), len(self._std)))

    @property
    def dtype(self) -> torch.dtype:
        return self._products.lin.dtype

    @property
    def device(self) -> torch.device:
        return self._products.lin.device

    @property
    def T(self) -> Operator:
        return self

    def times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "p k"]:
        inner = self._products.times((self._std * matrix).to(self.dtype)).view(*self._at.shape, -1)
        return (self._std * self._products.transposed_times(self._weighted(0, inner).flatten(0, 1))).to(self.dtype)

    def transposed_times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "p k"]:
        return self.times(matrix)

    def precise_times(self, matrix: Float64[Tensor, "p k"]) -> Float64[Tensor, "p k"]:
        scaled = self._std * matrix
        total = torch.zeros_like(scaled)
        for start, _, block in self._products.features():
            inner = block.push(scaled, self._products.lin.network.sizes).view(block.n, block.c, -1)
            total += block.pull(self._weighted(start, inner).flatten(0, 1))
        return self._std * total

    def diagonal(self) -> Float64[Tensor, " p"]:
        """Each entry exactly, Σᵢ ‖Rᵢᵀ Jᵢ[:, j]‖² s_j², with Rᵢ Rᵢᵀ = Hᵢ."""
        total = torch.zeros(len(self._std), dtype=torch.float64, device=self.device)
        for start, examples, block in self._products.features():
            stop = start + len(examples)
            total += block.mixed(self._likelihood.part(start, stop).curvature_root(self._at[start:stop])).squares()
        return total * self._std.squeeze(1).square()

    def _weighted(self, start: int, inner: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        stop = start + len(inner)
        return self._likelihood.part(start, stop).curvature_times(self._at[start:stop], inner)
