"""The Fisher matrix in units of the prior, as an operator: what a posterior over the weights is solved with."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from jacana.linearization import Linearization, Prior, Products, dense_kernel, pull, push
from jacana.networks import Examples
from jacana.operators.operator import Operator

__all__ = ["FisherRoot", "WhitenedFisher"]


@final
class WhitenedFisher(Operator):
    """S^½ F S^½ = S^½ Jᵀ H J S^½, shape (p, p): the precision of S^-½ δ is one more, I + S^½ F S^½.

    Args:
        products: with J, of the data.
        prior: S.
        curvature: R of each example, H = R Rᵀ.
    """

    def __init__(self, products: Products, prior: Prior, curvature: Float64[Tensor, "n c r"]) -> None:
        self._products, self._curvature, self._prior = products, curvature, prior
        self._std = prior.vector(products.lin.device).unsqueeze(1)

    @property
    def n_examples(self) -> int:
        """N."""
        return self._curvature.shape[0]

    @property
    def n_outputs(self) -> int:
        """C."""
        return self._curvature.shape[1]

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
        scaled = (self._std * matrix).to(self.dtype)
        found = self._products.summed(lambda start, batch: self._weighted(start, batch.jvp(scaled)).to(scaled))
        return (self._std * found).to(self.dtype)

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
            total += block.mixed(self._curvature[start:stop]).squares()
        return total * self._std.squeeze(1).square()

    def root(self, index: Int64[Tensor, " m"]) -> FisherRoot:
        """R with Rᵀ R = S^½ F_S S^½ of the examples with these numbers, which ascend."""
        return FisherRoot(self._products.lin, self._products.some(index), self._prior, self._curvature[index])

    def _weighted(self, start: int, inner: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        root = self._curvature[start : start + len(inner)].to(inner)
        return root @ (root.mT @ inner)


@final
class FisherRoot(Operator):
    """Cᵀ J S^½ of some examples with curvatures H = C Cᵀ, (m·r, p): products in float64.

    Args:
        lin: the linearization.
        examples: m of them.
        prior: S.
        curvature: C of each.
    """

    def __init__(
        self, lin: Linearization, examples: Examples, prior: Prior, curvature: Float64[Tensor, "m c r"]
    ) -> None:
        self._lin, self._examples, self._prior, self._curvature = lin, examples, prior, curvature
        self._std = prior.vector(lin.device).unsqueeze(1)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._curvature) * self._curvature.shape[2], len(self._std)))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    @property
    def device(self) -> torch.device:
        return self._lin.device

    def times(self, matrix: Float64[Tensor, "p k"]) -> Float64[Tensor, "mr k"]:
        m, c, _ = self._curvature.shape
        values = push(self._lin, self._examples, self._std * matrix).view(m, c, -1)
        return (self._curvature.mT @ values).flatten(0, 1)

    def transposed_times(self, matrix: Float64[Tensor, "mr k"]) -> Float64[Tensor, "p k"]:
        m, _, r = self._curvature.shape
        values = (self._curvature @ matrix.view(m, r, -1)).flatten(0, 1)
        return self._std * pull(self._lin, self._examples, values)

    def gram(self) -> Float64[Tensor, "mr mr"]:
        """R Rᵀ by the structured kernel."""
        m, c, r = self._curvature.shape
        kernel = dense_kernel(self._lin, self._examples, None, self._prior).view(m, c, m * c)
        half = (self._curvature.mT @ kernel).view(m * r, m, c)
        return torch.einsum("amc,mcr->amr", half, self._curvature).reshape(m * r, m * r)
