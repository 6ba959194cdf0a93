"""Conditioned: the covariance of f at new examples, given data that a factor has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.linearization import dense_kernel, kernel_and_blocks, pull
from jacana.networks import Examples
from jacana.posteriors.joseph import EPS, TRUSTED, joseph_root, joseph_variance
from jacana.posteriors.observations import Model
from jacana.posteriors.pieces import pieces

__all__ = ["Conditioned", "Explained"]


@final
@dataclass(frozen=True)
class Explained:
    """What a factor of A makes of the kernel K* between the data and new examples.

    Attributes:
        half: L⁻¹ K*, whose squares are the variance that the data explain.
        weights: C, so that Jᵀ C are the features of the data that explain f*.
        spread: Σ^½ C.
        rounding: of the explained variance, in units of eps: ‖A‖ ‖C‖².
    """

    half: Float64[Tensor, "k mc"]
    weights: Float64[Tensor, "nc mc"]
    spread: Float64[Tensor, "q mc"]
    rounding: Float64[Tensor, " mc"]


@final
@dataclass(frozen=True)
class Conditioned:
    """cov f* = K** − K*ᵀ A⁻¹ K*, as this difference where it stands out from rounding, or else in Joseph's form.

    Args:
        model: the prior.
        data: n examples.
        explain: K* to what A makes of it.
    """

    model: Model
    data: Examples
    explain: Callable[[Float64[Tensor, "nc mc"]], Explained]

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        parts = []
        for block, prior, found in self._pieces(x):
            prior = prior.diagonal(dim1=1, dim2=2)
            variance = prior.flatten() - found.half.square().sum(0)
            small = (variance < TRUSTED * _doubt(prior.flatten(), found)).nonzero().flatten()
            if len(small):
                variance[small] = joseph_variance(self.model, block, found.weights, found.spread, small, self._pulled)
            parts.append(variance.view_as(prior))
        return torch.cat(parts)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        parts = []
        for block, prior, found in self._pieces(x):
            c = prior.shape[1]
            rows = found.half.view(-1, len(block), c).permute(1, 2, 0)
            covariance = prior - rows @ rows.mT
            variances = covariance.diagonal(dim1=1, dim2=2)
            doubt = _doubt(prior.diagonal(dim1=1, dim2=2).flatten(), found).view_as(variances)
            for i in (variances < TRUSTED * doubt).any(1).nonzero().flatten().tolist():
                which = torch.arange(i * c, (i + 1) * c, device=prior.device)
                root = joseph_root(self.model, block, found.weights, found.spread, self._pulled, which)
                covariance[i] = root.T @ root
            parts.append(covariance)
        return torch.cat(parts)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        lin = self.model.lin
        prior = dense_kernel(lin, x, None, self.model.prior)
        found = self.explain(dense_kernel(lin, self.data, x, self.model.prior))
        covariance = prior - found.half.T @ found.half
        if bool((covariance.diagonal() < TRUSTED * _doubt(prior.diagonal(), found)).any()):
            root = joseph_root(self.model, x, found.weights, found.spread, self._pulled)
            return root.T @ root
        return 0.5 * (covariance + covariance.T)  # a product is symmetric only to rounding

    def _pieces(self, x: Examples) -> Iterator[tuple[Examples, Float64[Tensor, "b c c"], Explained]]:
        """Of new examples as many at once as fit, the blocks of K**, and what the data explain."""
        lin, c = self.model.lin, self.model.lin.findings(x).n_outputs
        for block in pieces(lin, x, len(self.data) * c):
            cross, prior = kernel_and_blocks(lin, self.data, block, self.model.prior)
            yield block, prior, self.explain(cross)

    def _pulled(self, weights: Float64[Tensor, "nc k"]) -> Float64[Tensor, "p k"]:
        """Jᵀ U."""
        return pull(self.model.lin, self.data, weights)


def _doubt(prior: Float64[Tensor, " mc"], found: Explained) -> Float64[Tensor, " mc"]:
    """The rounding error of the difference: eps (k** + ‖A‖ ‖C‖²)."""
    return EPS * (prior + found.rounding)
