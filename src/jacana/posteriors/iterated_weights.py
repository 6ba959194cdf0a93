"""Iterated weights: weight space without a factorisation, by an iterative solver on Fisher products."""

from __future__ import annotations

import math
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.linearization import Products, budget, pull, push
from jacana.networks import Examples
from jacana.operators import Covariance, Estimate, WhitenedFisher, standard_normal
from jacana.posteriors.method import State
from jacana.posteriors.observations import Observations
from jacana.solvers import Iterative, SmallFormError, SmallResidual, SmallSampleError, Solution, log_determinant
from jacana.solvers.preconditioners import Prepared

__all__ = ["IteratedWeightsState"]

_VARIANCE_ERROR = 0.01
"""How much larger than the exact one a variance may be, by bound."""


@final
class IteratedWeightsState(State):
    """A w ≈ S^½ Jᵀ Σ⁻¹ (y − m) with A = I + S^½ F S^½, so that δ̂ = S^½ w; every solution keeps its remainder.

    A variance is bᵀA⁻¹b for b = S^½ J*ᵀ. With x ≈ A⁻¹b and r = b − A x it is xᵀ(b + r) + rᵀA⁻¹r, of which the last is
    taken by its bound rᵀM⁻¹r, M ≤ A, so that it is of second order in the error and never below the exact one.

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
        self._products = Products(model.lin, observations.x)
        self._std = model.prior.vector(model.lin.device).unsqueeze(1)
        fisher = WhitenedFisher(self._products, model.prior, observations.likelihood, observations.residual)
        self._precision = Covariance(fisher, torch.ones_like(self._std.squeeze(1)))
        self._prepared: Prepared | None = solver.prepare(self._precision, progress=progress)
        weighted = observations.residual / observations.noise
        self._right = self._std * self._products.precise_transposed_times(weighted.reshape(-1, 1))
        start, remainder = before or (None, None)
        # A small residual of b is not enough: b is larger where the data say much, by as much as what they say there.
        self._solution = solver.solve(
            self._precision, self._right, prepared=self._prepared, start=start, remainder=remainder,
            goal=SmallFormError(solver.rtol**2), progress=progress,
        )  # fmt: skip

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
        """By |K + Σ| = |A| |Σ| and rᵀ(K + Σ)⁻¹r = rᵀΣ⁻¹r − bᵀA⁻¹b."""
        found = log_determinant(self._precision, self._prepared).estimate
        noise, residual = self.observations.noise, self.observations.residual
        explained = float((self._solution.x * (self._right + self._solution.remainder)).sum())
        fit = float((residual.square() / noise).sum()) - explained
        logs = found.value + float(noise.log().sum())
        value = -0.5 * (fit + logs + noise.numel() * math.log(2.0 * math.pi))
        return Estimate(value, 0.5 * found.std_error, found.products)

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        c = self.observations.c
        at_once = max(1, budget(self._std.device) // (8 * 8 * len(self._std) * c))
        parts = []
        for block in x.batches(at_once):
            found, right = self._solved_for(block)
            parts.append((found.x * (right + found.remainder)).sum(0) + self._left(found.remainder).diagonal())
        return torch.cat(parts).view(len(x), c)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        found, right = self._solved_for(x)
        product = found.x.T @ (right + found.remainder)
        return 0.5 * (product + product.T) + self._left(found.remainder)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        """δ̂ + S^½ A⁻¹u for u ~ N(0, A)."""
        noise, device = self.observations.noise, self._std.device
        prior = standard_normal(len(self._std), n, generator=generator, device=device)
        data = standard_normal(noise.numel(), n, generator=generator, device=device)
        drawn = prior + self._std * self._products.precise_transposed_times(data / noise.sqrt().reshape(-1, 1))
        freedom = 0.0 if self._prepared is None else self._prepared.freedom
        goal = SmallSampleError(_VARIANCE_ERROR, self._precision.noise, freedom, SmallResidual(self._solver.rtol))
        found = self._solver.solve(self._precision, drawn, prepared=self._prepared, goal=goal, progress=self._progress)
        return self._std * (self._solution.x + found.x)

    def extended(self, more: Observations) -> State:
        explained = push(more.model.lin, more.examples, self.weights.unsqueeze(1))
        unexplained = (more.residual.reshape(-1, 1) - explained) / more.noise.reshape(-1, 1)
        left = self._solution.remainder + self._std * pull(more.model.lin, more.examples, unexplained)
        return IteratedWeightsState(
            self.observations.followed_by(more), self._solver, progress=self._progress,
            before=(self._solution.x, left),
        )  # fmt: skip

    def _solved_for(self, x: Examples) -> tuple[Solution, Float64[Tensor, "p mc"]]:
        """A⁻¹B for B = S^½ J*ᵀ, and B."""
        rows = self.observations.model.lin.features(x).dense()
        right = rows.T.mul(self._std)
        start = None if self._prepared is None else self._prepared.solve(right)
        found = self._solver.solve(
            self._precision, right, prepared=self._prepared, start=start, goal=SmallFormError(_VARIANCE_ERROR),
            progress=self._progress,
        )  # fmt: skip
        return found, right

    def _left(self, remainder: Float64[Tensor, "p k"]) -> Float64[Tensor, "k k"]:
        """At least RᵀA⁻¹R."""
        below = self._prepared is not None and self._prepared.is_below
        return remainder.T @ (self._prepared.solve(remainder) if below and self._prepared is not None else remainder)
