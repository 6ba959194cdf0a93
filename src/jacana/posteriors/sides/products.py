"""Products alone: conjugate gradients on I + S^½ F S^½, where neither side can be factorised."""

from __future__ import annotations

from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.linearization import Prior, Products, budget, push
from jacana.networks import Examples
from jacana.operators import Covariance, Estimate, WhitenedFisher, standard_normal
from jacana.posteriors.observations import Observations
from jacana.posteriors.sides.side import Precision, Side
from jacana.solvers import (
    Goal,
    Iterative,
    SmallFormError,
    SmallResidual,
    SmallSampleError,
    Solution,
    form_bound,
    form_bounds,
    log_determinant,
)

__all__ = ["ProductPrecision", "ProductSide"]

_VARIANCE_ERROR = 0.01
"""How much larger than the exact one a variance may be, by bound."""

_FITTED = 64


@final
class ProductSide(Side):
    """δ = S^½ u, with products in the network's dtype.

    Args:
        observations: n examples, which may stay where they are.
        solver: its options.
        n_samples: from which variances are taken; None solves for each.
        seed: of the samples.
        progress: show bars.
    """

    def __init__(
        self, observations: Observations, solver: Iterative, *, n_samples: int | None, seed: int, progress: bool
    ) -> None:
        super().__init__(observations)
        model = observations.model
        self._solver, self._n_samples, self._seed, self._progress = solver, n_samples, seed, progress
        self._products = Products(model.lin, observations.x)
        self._std = model.prior.vector(model.lin.device)

    @property
    def tolerance(self) -> float:
        return max(float(self._solver.rtol) ** 2, 4.0 * torch.finfo(self._products.lin.dtype).eps ** 2)

    def narrowed(self, observations: Observations, factor: float) -> ProductSide:  # noqa: ARG002 - it is in the prior
        return ProductSide(
            observations, self._solver, n_samples=self._n_samples, seed=self._seed, progress=self._progress
        )

    def zero(self) -> Float64[Tensor, " p"]:
        return torch.zeros_like(self._std)

    def values(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, "n c"]:
        weights = (self._std * u).to(self._products.lin.dtype).unsqueeze(1)
        return self._products.times(weights).to(torch.float64).view(self.observations.n, self.observations.c)

    def pull(self, gradient: Float64[Tensor, "n c"]) -> Float64[Tensor, " p"]:
        cotangents = gradient.reshape(-1, 1).to(self._products.lin.dtype)
        return self._std * self._products.transposed_times(cotangents).to(torch.float64).squeeze(1)

    def weights(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        return self._std * u

    def shares(self, u: Float64[Tensor, " p"], v: Float64[Tensor, " p"]) -> Float64[Tensor, " l"]:
        return torch.dot(u, v).unsqueeze(0)

    def at(self, root: Float64[Tensor, "n c r"]) -> Precision:
        return ProductPrecision(
            self._products, self.observations.model.prior, root, self._solver, n_samples=self._n_samples,
            seed=self._seed, progress=self._progress,
        )  # fmt: skip


@final
class ProductPrecision(Precision):
    """A = I + S^½ F S^½, solved with; every solution keeps its remainder.

    A variance is bᵀA⁻¹b for b = S^½ J*ᵀ. With x ≈ A⁻¹b and r = b − A x it is xᵀ(b + r) + rᵀA⁻¹r, of which the last is
    taken by its bound rᵀM⁻¹r, M ≤ A, so that it is of second order in the error and never below the exact one.

    Args:
        products: with J.
        prior: S.
        root: R of each example, H = R Rᵀ.
        solver: its options.
        n_samples: from which variances are taken; None solves for each.
        seed: of the samples.
        progress: show bars.
    """

    def __init__(
        self,
        products: Products,
        prior: Prior,
        root: Float64[Tensor, "n c r"],
        solver: Iterative,
        *,
        n_samples: int | None = None,
        seed: int = 0,
        progress: bool,
    ) -> None:
        self._products, self._root, self._solver, self._progress = products, root, solver, progress
        self._n_samples, self._seed = n_samples, seed
        self._std = prior.vector(products.lin.device).unsqueeze(1)
        self._precision = Covariance(WhitenedFisher(products, prior, root), torch.ones_like(self._std.squeeze(1)))
        self._prepared = solver.prepare(self._precision, progress=progress)

    def solved(
        self,
        right: Float64[Tensor, "p k"],
        goal: Goal,
        start: Float64[Tensor, "p k"] | None = None,
        remainder: Float64[Tensor, "p k"] | None = None,
    ) -> Solution:
        """A⁻¹ B to a goal."""
        return self._solver.solve(
            self._precision, right, prepared=self._prepared, start=start, remainder=remainder, goal=goal,
            progress=self._progress,
        )  # fmt: skip

    def solve(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        return self.solved(u.unsqueeze(1), SmallResidual(self._solver.rtol)).x.squeeze(1)

    @cached_property
    def log_determinant(self) -> Estimate:
        return log_determinant(self._precision, self._prepared).estimate

    @property
    def freedom(self) -> Float64[Tensor, " l"]:
        """By samples: Σ tr H_i cov f_i."""
        seen = self._root.mT @ self.fitted() @ self._root
        return seen.diagonal(dim1=1, dim2=2).sum().unsqueeze(0)

    def fitted(self) -> Float64[Tensor, "n c c"]:
        n, c, _ = self._root.shape
        values = self._products.times(self._samples.to(self._products.lin.dtype)).to(torch.float64).view(n, c, -1)
        return values @ values.mT / values.shape[2]

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        c = self._root.shape[1]
        if self._n_samples is not None:
            return self._spread(x).square().mean(1).view(-1, c)
        parts = []
        for block in x.batches(self._at_once):
            found, right = self._solved_for(block)
            left = form_bounds(self._prepared, self._precision.noise, found.remainder)
            parts.append((found.x * (right + found.remainder)).sum(0) + left)
        return torch.cat(parts).view(-1, c)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        c = self._root.shape[1]
        if self._n_samples is not None:
            spread = self._spread(x).view(-1, c, self._n_samples)
            return spread @ spread.mT / self._n_samples
        parts = []
        for block in x.batches(self._at_once):
            whole = self.covariance(block).view(len(block), c, len(block), c)
            parts.append(whole.diagonal(dim1=0, dim2=2).movedim(2, 0))
        return torch.cat(parts)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        if self._n_samples is not None:
            spread = self._spread(x)
            return spread @ spread.T / self._n_samples
        found, right = self._solved_for(x)
        product = found.x.T @ (right + found.remainder)
        left = form_bound(self._prepared, self._precision.noise, found.remainder)
        return 0.5 * (product + product.T) + left

    def deviations(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        """S^½ A⁻¹u for u ~ N(0, A)."""
        rows, device = self._root.shape[0] * self._root.shape[2], self._std.device
        prior = standard_normal(len(self._std), n, generator=generator, device=device)
        data = standard_normal(rows, n, generator=generator, device=device).view(len(self._root), -1, n)
        drawn = prior + self._std * self._products.precise_transposed_times((self._root @ data).flatten(0, 1))
        freedom = 0.0 if self._prepared is None else self._prepared.freedom
        goal = SmallSampleError(_VARIANCE_ERROR, self._precision.noise, freedom, SmallResidual(self._solver.rtol))
        return self._std * self.solved(drawn, goal).x

    @cached_property
    def _samples(self) -> Float64[Tensor, "p s"]:
        return self.deviations(self._n_samples or _FITTED, torch.Generator().manual_seed(self._seed))

    def _spread(self, x: Examples) -> Float64[Tensor, "mc s"]:
        return push(self._products.lin, x, self._samples)

    @property
    def _at_once(self) -> int:
        return max(1, budget(self._std.device) // (8 * 8 * len(self._std) * self._root.shape[1]))

    def _solved_for(self, x: Examples) -> tuple[Solution, Float64[Tensor, "p mc"]]:
        """A⁻¹B for B = S^½ J*ᵀ, and B."""
        right = self._products.lin.features(x).dense().T.mul(self._std)
        start = None if self._prepared is None else self._prepared.solve(right)
        return self.solved(right, SmallFormError(_VARIANCE_ERROR), start), right
