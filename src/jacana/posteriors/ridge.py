"""Ridge: regression with one noise, at any noise, from one decomposition of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import NotPositiveDefinite
from jacana.linearization import dense_kernel, require
from jacana.posteriors.observations import Observations

__all__ = ["Ridge"]

_LEAST = 1e-12
"""What must be left of an example's own share, I − P_i, to have digits: it is right to eps."""


@final
@dataclass(frozen=True)
class Ridge:
    """r_i = g(x_i) + ε_i, ε_i ~ N(0, σ²/w_i), with the kernel W^½ K W^½ = U Λ Uᵀ on the smaller side.

    Attributes:
        values: Λ.
        vectors: U; with as many columns as rows or as parameters, whichever are fewer.
        residual: W^½ r.
        weights: w.
        size: the root mean square of the prior's standard deviations.
    """

    values: Float64[Tensor, " q"]
    vectors: Float64[Tensor, "nc q"]
    residual: Float64[Tensor, "n c"]
    weights: Float64[Tensor, " n"]
    size: float

    @classmethod
    def of(
        cls,
        observations: Observations,
        residual: Float64[Tensor, "n c"],
        weights: Float64[Tensor, " n"],
        *,
        progress: bool,
        cure: str,
    ) -> Ridge:
        """Compute the kernel and decompose it.

        Raises:
            InsufficientMemory: it would not fit.
        """
        lin, prior = observations.model.lin, observations.model.prior
        rows, p = residual.numel(), lin.n_parameters
        root = weights.sqrt().repeat_interleave(residual.shape[1])
        few = min(rows, p)
        require(6 * 8 * rows * few, lin.device, f"decomposing the kernel of {rows:,} function values", cure)
        if rows <= p:
            kernel = dense_kernel(lin, observations.examples, None, prior, progress=progress)
            size = float(kernel.diagonal().mean()) ** 0.5
            values, vectors = torch.linalg.eigh(root.unsqueeze(1) * kernel * root)
            values = values.clamp_min(0.0)  # below zero by rounding
        else:
            jacobian = torch.cat([block.dense() for block in lin.blocks(observations.examples)])
            jacobian = jacobian * prior.vector(lin.device)
            size = float(jacobian.square().sum(1).mean()) ** 0.5
            vectors, roots, _ = torch.linalg.svd(root.unsqueeze(1) * jacobian, full_matrices=False)
            values = roots.square()
        return cls(values, vectors, weights.sqrt().unsqueeze(1) * residual, weights, size)

    def left_out(self, noise_std: float) -> tuple[Float64[Tensor, "n c"], Float64[Tensor, "n c c"]]:
        """Mean and covariance of g at each example given all others, its c outputs left out together.

        With P = U Λ (Λ + σ²)⁻¹ Uᵀ and P_i its block of example i these are, for unit weights, (I − P_i)⁻¹ of
        [P r]_i − P_i r_i, and σ² P_i (I − P_i)⁻¹: no difference of what is almost the same is taken.

        Raises:
            NotPositiveDefinite: a noise so small that an example's fit, left in, says nothing else than itself.

        References:
            Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, equations 5.12, by blocks here.
        """
        n, c = self.residual.shape
        noise = noise_std * noise_std
        explained = self.values / (self.values + noise)
        fit = (self.vectors @ (explained * (self.vectors.T @ self.residual.reshape(-1)))).view(n, c)
        own = self._blocks(explained)
        rest = self._blocks(noise / (self.values + noise))
        if len(self.values) < n * c:  # what is outside the range of K, none of it explained
            rest = rest + torch.eye(c, dtype=rest.dtype, device=rest.device) - self._blocks(torch.ones_like(explained))
        lower, failed = torch.linalg.cholesky_ex(rest)
        if bool(failed.any()) or float(lower.diagonal(dim1=1, dim2=2).min()) ** 2 < _LEAST:
            raise NotPositiveDefinite(
                f"noise_std: got {noise_std:.3g}, too small to leave an example out in float64, beside a prior of "
                f"{self.size:.3g}; give a larger one, or the scale too."
            )
        others = fit - (own @ self.residual.unsqueeze(2)).squeeze(2)
        mean = torch.cholesky_solve(others.unsqueeze(2), lower).squeeze(2)
        half = torch.linalg.solve_triangular(lower, own, upper=False)
        covariance = noise * (own + half.mT @ half)  # P (I − P)⁻¹ = P + P (I − P)⁻¹ P
        return mean / self.weights.sqrt().unsqueeze(1), covariance / self.weights.view(n, 1, 1)

    def _blocks(self, shares: Float64[Tensor, " q"]) -> Float64[Tensor, "n c c"]:
        """The diagonal blocks of U diag(shares) Uᵀ."""
        n, c = self.residual.shape
        half = (self.vectors * shares.sqrt()).view(n, c, -1)
        return half @ half.mT
