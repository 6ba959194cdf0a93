"""Iterated: function space without a factorisation, by an iterative solver on products."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.linearization import Products, budget, dense_kernel, diagonal_blocks
from jacana.networks import Examples
from jacana.operators import NTK, Covariance, Estimate, rounded, standard_normal
from jacana.posteriors.joseph import EPS, TRUSTED, joseph_root, joseph_variance
from jacana.posteriors.method import State
from jacana.posteriors.observations import Observations
from jacana.solvers import (
    Goal,
    Iterative,
    SmallResidual,
    SmallSampleError,
    SmallVarianceError,
    Solution,
    form_bounds,
    log_determinant,
)
from jacana.solvers.preconditioners import Prepared

__all__ = ["IteratedState", "System"]

_VARIANCE_ERROR = 0.01
"""How much larger than the exact one a variance may be, by estimate."""

_OF_SAMPLING = 0.1
"""What may be wrong with the variance of a fixed number of samples beside its standard error."""


@final
class System:
    """A = K + Σ of some observations, with its solver and what was prepared for it.

    Args:
        observations: n examples.
        solver: its options.
        progress: show bars.
        products: with the Jacobian of these observations, where they are there already.
        prepare: makes what is prepared, where that is not for the solver to do.
        by_products: whether means and samples may be held against products in the network's dtype; not where they start
            from what was held against float64. Of one output, what is contracted in float64 costs no more.
    """

    def __init__(
        self,
        observations: Observations,
        solver: Iterative,
        *,
        progress: bool,
        products: Products | None = None,
        prepare: Callable[[System], Prepared | None] | None = None,
        by_products: bool = True,
    ) -> None:
        model = observations.model
        self.observations, self.solver, self._progress = observations, solver, progress
        self.products = Products(model.lin, observations.x) if products is None else products
        kernel = NTK(model.lin, self.products, prior_std=model.prior.given)
        self.covariance = Covariance(
            kernel, observations.noise.flatten(), by_products=by_products and observations.c > 1
        )
        self._of_entries = Covariance(kernel, self.covariance.noise)
        self.prepared: Prepared | None = self.prepared_anew() if prepare is None else prepare(self)
        self._variances = model.prior.vector(model.lin.device).square().unsqueeze(1)

    def prepared_anew(self) -> Prepared | None:
        """What the solver prepares for these observations."""
        return self.solver.prepare(self.covariance, progress=self._progress)

    def _prepared_for(self, more: Observations) -> Prepared | None:
        """What was prepared for these, carried on to others, where it is as good there."""
        if self.prepared is None:
            return None
        model = self.observations.model
        products = Products(model.lin, more.x)
        rows = NTK(model.lin, products, self.products, prior_std=model.prior.given).columns
        diagonal = NTK(model.lin, products, prior_std=model.prior.given).precise_diagonal()
        return self.prepared.extended(rows, diagonal, more.noise.flatten())

    def solve(
        self,
        right: Float64[Tensor, "nc k"],
        start: Float64[Tensor, "nc k"] | None = None,
        goal: Goal | None = None,
        remainder: Float64[Tensor, "nc k"] | None = None,
    ) -> Solution:
        """A⁻¹ B to the solver's tolerance, or to another goal."""
        return self.solver.solve(
            self.covariance, right, prepared=self.prepared, start=start, remainder=remainder, goal=goal,
            progress=self._progress,
        )  # fmt: skip

    def extended(
        self,
        more: Observations,
        right: tuple[Float64[Tensor, "nc k"], Float64[Tensor, "mc k"]],
        solution: Solution,
        weights: Float64[Tensor, "p k"],
    ) -> tuple[System, Solution]:
        """The system of these observations and others, solved from where this one was.

        Args:
            more: the others.
            right: what is to be explained of these, and of the others.
            solution: of these.
            weights: S Jᵀ α of that: what it leaves of the others costs no product.
        """
        system = System(
            self.observations.followed_by(more), self.solver, progress=self._progress,
            prepare=lambda system: self._prepared_for(more) or system.prepared_anew(),
            by_products=not solution.is_precise,
        )  # fmt: skip
        left = right[1] - Products(more.model.lin, more.x).precise_times(weights)
        start = torch.cat([solution.x, torch.zeros_like(right[1])])
        remainder = torch.cat([solution.remainder, left])
        n_samples = right[0].shape[1] - 1
        goal = system.sample_goal(n_samples) if n_samples else None
        return system, system.solve(torch.cat(right), start, goal, remainder)

    def sample_goal(self, n_samples: int | None = None) -> Goal | None:
        """How well samples are solved for; by the residual alone where there is no noise.

        Args:
            n_samples: how many there will ever be, so that no more is asked than what they tell of a variance.
        """
        noise = self.covariance.noise
        if bool((noise == 0.0).any()):
            return None
        freedom = 0.0 if self.prepared is None else self.prepared.freedom
        of_sampling = 0.0 if n_samples is None else _OF_SAMPLING * math.sqrt(2.0 / n_samples)
        share = max(_VARIANCE_ERROR, of_sampling)
        return SmallSampleError(share, noise, freedom, SmallResidual(self.solver.rtol))

    def explain(self, cross: Float64[Tensor, "nc k"], goal: Goal) -> Solution:
        """A⁻¹ K* for entries K* of the kernel.

        It begins at M⁻¹ K*: what is smooth is solved by that alone, far below what a step in float32 can tell.
        """
        start = None if self.prepared is None else self.prepared.solve(cross)
        return self.solver.solve(
            self._of_entries, cross, prepared=self.prepared, start=start, goal=goal, progress=self._progress
        )

    def weights_for(self, solution: Solution) -> Float64[Tensor, "p k"]:
        """S Jᵀ α, by the products that α was held against: what it explains, J S Jᵀ α, is then what was looked at."""
        return self._variances * self.pulled(solution)

    def pulled(self, solution: Solution) -> Float64[Tensor, "p k"]:
        """Jᵀ α, by the same."""
        if solution.is_precise:
            return self.products.precise_transposed_times(solution.x)
        return rounded(self.products.transposed_times, solution.x, self.products.lin.dtype)

    def cross(self, x: Examples) -> Float64[Tensor, "nc mc"]:
        """K between the observed examples and others."""
        return self.products.kernel(x, self.observations.model.prior)

    def weight_samples(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Prior samples z (p, n) of the weights, and what they and the noise leave of the observations (n·c, n).

        Matheron's rule: δ_s = z + S Jᵀ A⁻¹ (y − m − J z − ε).
        """
        lin = self.observations.model.lin
        prior = self._variances.sqrt() * standard_normal(lin.n_parameters, n, generator=generator, device=lin.device)
        return prior, self._missing(self.observations, self.values(prior), generator)

    def values(self, weights: Float64[Tensor, "p k"]) -> Float64[Tensor, "nc k"]:
        """J V in the network's dtype: for samples, which are not known to more digits than the targets."""
        return self.products.times(weights.to(self.products.lin.dtype)).to(torch.float64)

    def missing(
        self, more: Observations, prior: Float64[Tensor, "p s"], generator: torch.Generator | None
    ) -> Float64[Tensor, "mc s"]:
        """What prior samples and new noise leave of other observations."""
        return self._missing(more, Products(more.model.lin, more.x).precise_times(prior), generator)

    @staticmethod
    def _missing(observations: Observations, values: Tensor, generator: torch.Generator | None) -> Tensor:
        std = observations.noise.sqrt().reshape(-1, 1)
        noise = std * standard_normal(*values.shape, generator=generator, device=values.device)
        return observations.residual.reshape(-1, 1) - values - noise

    def evidence(self, alpha: Float64[Tensor, "nc 1"], remainder: Float64[Tensor, "nc 1"]) -> Estimate:
        """Log p(y) with its standard error: that of the determinant, and what the remainder e may hide, eᵀA⁻¹e."""
        found = log_determinant(self.covariance, self.prepared).estimate
        fit = float((alpha * (self.observations.residual.reshape(-1, 1) + remainder)).sum())
        value = -0.5 * (fit + found.value + len(alpha) * math.log(2.0 * math.pi))
        return Estimate(value, 0.5 * (found.std_error + self._hidden(remainder)), found.products)

    def _hidden(self, remainder: Float64[Tensor, "nc 1"]) -> float:
        """A bound of eᵀA⁻¹e: by an M below A, else by the noise; nothing is known where there is neither."""
        found = float(form_bounds(self.prepared, self.covariance.noise, remainder))
        return found if math.isfinite(found) else 0.0


@final
class IteratedState(State):
    """α ≈ A⁻¹ (y − m) to the solver's tolerance.

    A variance is that of f* − C̃ᵀy for the C̃ that the solver reached: with C̃ = A⁻¹K* + E it is the exact one plus
    Eᵀ A E, of second order in the error, and never below the exact one.
    """

    def __init__(self, system: System, solution: Solution | None = None) -> None:
        super().__init__(system.observations)
        self._system = system
        self._residual = self.observations.residual.reshape(-1, 1)
        self._solution = system.solve(self._residual) if solution is None else solution

    @property
    def solution(self) -> Solution:
        return self._solution

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._system.weights_for(self.solution).squeeze(1)

    @property
    def log_evidence(self) -> float:
        return self.evidence.value

    @cached_property
    def evidence(self) -> Estimate:
        return self._system.evidence(self._solution.x, self._solution.remainder)

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        model = self.observations.model
        c = self.observations.c
        at_once = max(1, budget(model.lin.device) // (8 * 8 * len(self._residual) * c))
        pulled, parts = self._system.products.precise_transposed_times, []
        for block in x.batches(at_once):
            prior = diagonal_blocks(model.lin, block, model.prior).diagonal(dim1=1, dim2=2)
            cross = self._system.cross(block)
            found = self._system.explain(cross, SmallVarianceError(_VARIANCE_ERROR, prior.flatten()))
            variance = prior.flatten() - (found.x * (cross + found.remainder)).sum(0)
            fit = (found.x * (cross - found.remainder)).sum(0)
            small = (variance < TRUSTED * EPS * (prior.flatten() + fit.abs())).nonzero().flatten()
            if len(small):
                variance[small] = joseph_variance(model, block, found.x, self._spread(found.x), small, pulled)
            parts.append(variance.view_as(prior))
        return torch.cat(parts)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        model = self.observations.model
        prior = dense_kernel(model.lin, x, None, model.prior)
        cross = self._system.cross(x)
        goal = SmallVarianceError(_VARIANCE_ERROR, prior.diagonal())
        found = self._system.explain(cross, goal)
        explained = cross.T @ found.x
        fit = found.x.T @ (cross - found.remainder)
        covariance = prior - explained - explained.T + 0.5 * (fit + fit.T)
        doubt = TRUSTED * EPS * (prior.diagonal() + fit.diagonal().abs())
        if bool((covariance.diagonal() < doubt).any()):
            pulled = self._system.products.precise_transposed_times
            root = joseph_root(self.observations.model, x, found.x, self._spread(found.x), pulled)
            return root.T @ root
        return covariance

    def _spread(self, weights: Float64[Tensor, "nc mc"]) -> Float64[Tensor, "nc mc"]:
        """Σ^½ C."""
        return self.observations.noise.sqrt().reshape(-1, 1) * weights

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        prior, missing = self._system.weight_samples(n, generator)
        return prior + self._system.weights_for(self._system.solve(missing, goal=self._system.sample_goal()))

    def extended(self, more: Observations) -> State:
        right = self._residual, more.residual.reshape(-1, 1)
        return IteratedState(*self._system.extended(more, right, self._solution, self.weights.unsqueeze(1)))
