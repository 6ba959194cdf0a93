"""Function space: factorise K + Σ, n·c by n·c."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, NotPositiveDefinite
from jacana.linearization import dense_kernel, pull, push, require
from jacana.networks import Examples
from jacana.operators import standard_normal
from jacana.posteriors.conditioned import Conditioned, Explained
from jacana.posteriors.iterated import IteratedState, System
from jacana.posteriors.joseph import EPS
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.solvers import Cholesky, Direct, Factor, Iterative

__all__ = ["FunctionSpace", "FunctionSpaceState"]


@final
@dataclass(frozen=True)
class FunctionSpace(Method):
    """Exact inference on the side of the data.

        δ̂ = S Jᵀ (K + Σ)⁻¹ (y − m),     cov f* = K** − K*ᵀ (K + Σ)⁻¹ K*,     K = J S Jᵀ

    Choose it where there are fewer observations n·c than parameters p. Costs one kernel ((n·c)² p operations at most;
    far fewer where operations have rules) and (n·c)³/3 for the factorisation, in (n·c)² float64 numbers. A mean is one
    Jacobian-vector product; a variance is a kernel with the data and two triangular solves.

    Where a variance is so small a difference that rounding would show, it is computed as
    ‖S^½(J*ᵀ − JᵀC)‖² + ‖Σ^½ C‖², C = (K + Σ)⁻¹ K*, which cannot be negative (the Joseph form).

    Args:
        solver: the factorisation, :class:`Cholesky`, or :class:`Eigh` where the covariance may be singular; or
            :class:`CG`, which needs products alone: no kernel is formed, the data may be a DataLoader or a memory map
            that does not fit in memory, and variances are never below the exact ones.

    Raises:
        NotPositiveDefinite: at conditioning, where the noise is too small to tell repeated examples apart.

    References:
        Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, algorithm 2.1.
        Maddox et al. 2021 (arXiv 2103.01439), section 3.
        Bucy and Joseph 1968, Filtering for Stochastic Processes, for the symmetric form of the variance.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 7).unsqueeze(1)
        >>> post = jacana.TangentGP(net).condition(x, x.sin(), noise_std=0.05, method=jacana.FunctionSpace())
        >>> bool((post.predict(x).variance < jacana.TangentGP(net).predict(x).variance).all())
        True
    """

    solver: Direct | Iterative = field(default_factory=Cholesky)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Direct | Iterative):
            raise InvalidOption(
                f"solver: got {self.solver!r}; expected an object with its options, jacana.Cholesky(), jacana.Eigh() "
                "or jacana.CG()."
            )

    @property
    def streams(self) -> bool:
        return isinstance(self.solver, Iterative)

    def condition(self, observations: Observations, *, progress: bool) -> State:
        if isinstance(self.solver, Iterative):
            return IteratedState(System(observations, self.solver, progress=progress))
        model, n = observations.model, observations.residual.numel()
        require(self.solver.squares * 8 * n * n, model.lin.device, f"factorising the covariance of {n:,} observations",
                "use WeightSpace(), fewer examples, or fewer outputs (output=).")  # fmt: skip
        kernel = dense_kernel(model.lin, observations.examples, None, model.prior, progress=progress)
        kernel.diagonal().add_(observations.noise.flatten())
        return FunctionSpaceState(observations, self.solver, _factor(self.solver, kernel))


def _factor(solver: Direct, covariance: Float64[Tensor, "nc nc"]) -> Factor:
    try:
        return solver.factor(covariance)
    except NotPositiveDefinite as error:
        raise _too_little_noise(error, covariance) from error


def _too_little_noise(error: NotPositiveDefinite, covariance: Tensor) -> NotPositiveDefinite:
    least = math.sqrt(EPS * len(covariance) * float(covariance.diagonal().max()) * len(covariance))
    return NotPositiveDefinite(
        f"noise_std: {error} Examples are repeated or outnumber the parameters, and the noise is too small to tell "
        f"them apart (beyond {least:.1e} it is enough). Give a larger noise_std, use WeightSpace(), leave out what "
        "cannot be told apart: FunctionSpace(Eigh()), or ask for a jitter: FunctionSpace(Cholesky(jitter=1e-12))."
    )


@final
class FunctionSpaceState(State):
    """A factor of K + Σ and α = (K + Σ)⁻¹ (y − m)."""

    def __init__(self, observations: Observations, solver: Direct, factor: Factor) -> None:
        super().__init__(observations)
        self._solver, self._factor = solver, factor
        self._residual = observations.residual.reshape(-1, 1)
        self._alpha = factor.solve(self._residual)

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._weights_for(self._alpha).squeeze(1)

    @property
    def log_evidence(self) -> float:
        fit = float(self._residual.T @ self._alpha)
        return -0.5 * (fit + self._factor.log_determinant + self._factor.rank * math.log(2.0 * math.pi))

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self._conditioned.variance(x)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        return self._conditioned.blocks(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self._conditioned.covariance(x)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        """Matheron's rule: a prior sample, corrected by the data it does not fit."""
        model, observations = self.observations.model, self.observations
        lin = model.lin
        std = model.prior.vector(lin.device).unsqueeze(1)
        prior = std * standard_normal(lin.n_parameters, n, generator=generator, device=lin.device)
        noise = standard_normal(len(self._residual), n, generator=generator, device=lin.device)
        noise *= observations.noise.sqrt().reshape(-1, 1)
        missing = self._residual - push(lin, observations.examples, prior) - noise
        return prior + self._weights_for(self._factor.solve(missing))

    @cached_property
    def precision(self) -> tuple[Float64[Tensor, "n c c"], Float64[Tensor, "n c"]]:
        n, c = self.observations.n, self.observations.c
        if self._factor.rank < n * c:
            raise InvalidOption(
                f"leave_one_out: the covariance has rank {self._factor.rank} of {n * c}: without noise, some of the "
                "observations follow from others, and none has a closed form. Give a noise_std above zero."
            )
        inverse = self._factor.inverse().view(n, c, n, c)
        which = torch.arange(n, device=inverse.device)
        return inverse[which, :, which, :].contiguous(), self._alpha.view(n, c)

    def extended(self, more: Observations) -> State:
        model = self.observations.model
        cross = dense_kernel(model.lin, self.observations.examples, more.examples, model.prior)
        corner = dense_kernel(model.lin, more.examples, None, model.prior)
        corner.diagonal().add_(more.noise.flatten())
        try:
            factor = self._solver.extend(self._factor, cross, corner)
        except NotPositiveDefinite as error:
            raise _too_little_noise(error, corner) from error
        return FunctionSpaceState(self.observations.followed_by(more), self._solver, factor)

    def _weights_for(self, alpha: Float64[Tensor, "nc k"]) -> Float64[Tensor, "p k"]:
        """S Jᵀ α."""
        model = self.observations.model
        return model.prior.vector(model.lin.device).square().unsqueeze(1) * pull(
            model.lin, self.observations.examples, alpha
        )

    @property
    def _conditioned(self) -> Conditioned:
        return Conditioned(self.observations.model, self.observations.examples, self._explained)

    def _explained(self, cross: Float64[Tensor, "nc mc"]) -> Explained:
        """C = (K + Σ)⁻¹ K*."""
        half = self._factor.half_solve(cross)
        weights = self._factor.complete(half)
        spread = self.observations.noise.sqrt().reshape(-1, 1) * weights
        return Explained(half, weights, spread, self._factor.norm * weights.square().sum(0))
