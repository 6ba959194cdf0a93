"""Iterated weights: weight space without a factorisation, by an iterative solver on Fisher products."""

from __future__ import annotations

import math
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.linearization import Products
from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.method import State
from jacana.posteriors.observations import Observations
from jacana.posteriors.sides import ProductPrecision
from jacana.solvers import Iterative, SmallFormError, Solution

__all__ = ["IteratedWeightsState"]


@final
class IteratedWeightsState(State):
    """A w ≈ S^½ Jᵀ Σ⁻¹ (y − m) with A = I + S^½ F S^½, so that δ̂ = S^½ w; every solution keeps its remainder.

    Args:
        observations: n examples.
        solver: its options.
        progress: show bars.
        before: the posterior of the first of these observations, to start from.
    """

    def __init__(
        self,
        observations: Observations,
        solver: Iterative,
        *,
        progress: bool,
        before: tuple[Float64[Tensor, "p 1"], Float64[Tensor, "p 1"]] | None = None,
    ) -> None:
        super().__init__(observations)
        if bool((observations.noise == 0).any()):
            raise InvalidOption("noise_std: got zero, and weight space divides by it; use FunctionSpace().")
        model = observations.model
        self._solver, self._progress = solver, progress
        products = Products(model.lin, observations.x)
        self._std = model.prior.vector(model.lin.device).unsqueeze(1)
        root = observations.likelihood.curvature_root(observations.residual)
        self._precision = ProductPrecision(products, model.prior, root, solver, progress=progress)
        weighted = observations.residual / observations.noise
        self._right = self._std * products.precise_transposed_times(weighted.reshape(-1, 1))
        # A small residual of b is not enough: b is larger where the data say much, by as much as what they say there.
        self._solution = self._precision.solved(self._right, SmallFormError(solver.rtol**2), *(before or (None, None)))

    @property
    def solution(self) -> Solution:
        return self._solution

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return (self._std * self._solution.x).squeeze(1)

    @property
    def log_evidence(self) -> float:
        return self.evidence.value

    @cached_property
    def evidence(self) -> Estimate:
        """By |K + Σ| = |A| |Σ| and rᵀ(K + Σ)⁻¹r = rᵀΣ⁻¹r − bᵀA⁻¹b, which is off by eᵀA⁻¹e ≤ eᵀe for a remainder e."""
        found = self._precision.log_determinant
        noise, residual = self.observations.noise, self.observations.residual
        explained = float((self._solution.x * (self._right + self._solution.remainder)).sum())
        fit = float((residual.square() / noise).sum()) - explained
        logs = found.value + float(noise.log().sum())
        value = -0.5 * (fit + logs + noise.numel() * math.log(2.0 * math.pi))
        hidden = float(self._solution.remainder.square().sum())
        return Estimate(value, 0.5 * (found.std_error + hidden), found.products)

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self._precision.variance(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self._precision.covariance(x)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self.weights.unsqueeze(1) + self._precision.deviations(n, generator)

    def extended(self, more: Observations) -> State:
        products = Products(more.model.lin, more.x)
        explained = products.precise_times(self.weights.unsqueeze(1))
        unexplained = (more.residual.reshape(-1, 1) - explained) / more.noise.reshape(-1, 1)
        left = self._solution.remainder + self._std * products.precise_transposed_times(unexplained)
        return IteratedWeightsState(
            self.observations.followed_by(more), self._solver, progress=self._progress,
            before=(self._solution.x, left),
        )  # fmt: skip
