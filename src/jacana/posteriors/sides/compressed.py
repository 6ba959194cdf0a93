"""Compressed: a spread by the directions alone in which the data tell much."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from jacana.linearization import budget
from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.observations import Observations
from jacana.posteriors.sides.side import Spread

__all__ = ["Compressed"]

_TRUSTED = 10.0
"""A difference is used where its smallest eigenvalue is this many times its rounding error, in the network's dtype."""


@final
class Compressed(Spread):
    """The spread of a precision on the side of the data, without the directions that tell less than ``rtol``.

        Rᵀ K R = V Λ Vᵀ,     cov f* ≈ K** − Q*Q*ᵀ,     Q* = J* S Jᵀ R V₊ (I + Λ₊)^-½,     Λ₊ = those of Λ above rtol

    What is left out adds no more than rtol · K** (as matrices: Σ₋ (vᵀRᵀk)² / (1 + λ) ≤ rtol Σ₋ (vᵀRᵀk)² / λ ≤
    rtol · k**), and makes no variance smaller. An example costs its features and 2 c p q operations for q directions,
    in the network's dtype, in place of 2 c p n c in float64; the directions once 2 n c p q and 9 (n r)³ operations, and
    p q numbers. Where there are fewer new values than directions, or these do not fit, nothing is left out.

    Args:
        exact: the spread itself.
        observations: n examples.
        root: R of each.
        system: computes I + Rᵀ K R.
        rtol: how much of the prior's variance may be added.
    """

    def __init__(
        self,
        exact: Spread,
        observations: Observations,
        root: Float64[Tensor, "n c r"],
        system: Callable[[], Float64[Tensor, "nr nr"]],
        rtol: float,
    ) -> None:
        self._exact, self._observations, self._root = exact, observations, root
        self._system, self._rtol = system, rtol

    @cached_property
    def _weights(self) -> Float64[Tensor, "nc q"]:
        """R V₊ (I + Λ₊)^-½."""
        values, vectors = torch.linalg.eigh(self._system())
        told = values - 1.0 > self._rtol
        n, c, r = self._root.shape
        scaled = (vectors[:, told] / values[told].sqrt()).view(n, r, -1)
        return (self._root @ scaled).view(n * c, -1)

    @property
    def rank(self) -> int:
        """The number of directions."""
        return self._weights.shape[1]

    @cached_property
    def directions(self) -> Float[Tensor, "p q"]:
        """S Jᵀ R V₊ (I + Λ₊)^-½, in the network's dtype."""
        model = self._observations.model
        lin, start = model.lin, 0
        weights = self._weights.to(lin.dtype)
        found = torch.zeros(lin.n_parameters, self.rank, dtype=lin.dtype, device=lin.device)
        for block in lin.blocks(self._observations.examples, dtype=lin.dtype):
            found += block.pull(weights[start : start + block.n_rows])
            start += block.n_rows
        return found.mul_(model.prior.vector(lin.device).square().to(lin.dtype).unsqueeze(1))

    @property
    def log_determinant(self) -> Estimate:
        return self._exact.log_determinant

    def fitted(self) -> Float64[Tensor, "n c c"]:
        return self._exact.fitted()

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self.blocks(x).diagonal(dim1=1, dim2=2) if self._pays(x) else self._exact.variance(x)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        if not self._pays(x):
            return self._exact.blocks(x)
        model, parts = self._observations.model, []
        lin, doubtful = model.lin, []
        for features in lin.blocks(x, dtype=lin.dtype):
            block = features.formed()
            prior = block.blocks(model.prior.variances).to(torch.float64)
            half = block.push(self.directions, lin.network.sizes).to(torch.float64).view(block.n, block.c, -1)
            covariance = prior - half @ half.mT
            parts.append(0.5 * (covariance + covariance.mT))
            rounding = lin.network.eps * prior.diagonal(dim1=1, dim2=2).amax(1)
            doubtful.append(torch.linalg.eigvalsh(parts[-1])[:, 0] < _TRUSTED * rounding)
        found = torch.cat(parts)
        few = torch.cat(doubtful).nonzero().flatten()
        if len(few):
            found[few] = self._exact.blocks(x.some(few))
        return found

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self._exact.covariance(x)

    def deviations(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self._exact.deviations(n, generator)

    def _pays(self, x: Examples) -> bool:
        """Whether the directions are there, or are fewer than the new values, and fit."""
        lin, (n, c, r) = self._observations.model.lin, self._root.shape
        if "directions" in vars(self):
            return True
        if 9.0 * (n * r) ** 3 > 2.0 * len(x) * c * lin.n_parameters * n * c:
            return False  # to find the directions would take longer than to do without
        nbytes = 2 * self.rank * lin.n_parameters * torch.empty(0, dtype=lin.dtype).element_size()
        return self.rank <= len(x) * c and nbytes <= budget(lin.device)
