"""Pathwise: the posterior as weight vectors, its mean and samples, from one system with many right-hand sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.linearization import push
from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.iterated import System
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.solvers import CG, Iterative, Solution

__all__ = ["Pathwise"]


@final
@dataclass(frozen=True)
class Pathwise(Method):
    """Samples of the posterior by Matheron's rule, each a weight vector.

        δ_s = z + S Jᵀ (K + Σ)⁻¹ (y − m − J z − ε),     z ~ N(0, S),     ε ~ N(0, Σ)

    All are solved for together with the mean, once. From then on means, variances, covariances and samples at any
    examples are Jacobian-vector products, n_samples + 1 of them, and the training data are not needed. Choose it where
    a matrix cannot be factorised and there is much to predict. A variance is the mean of n_samples squares around the
    exact mean, with a relative standard error of √(2 / n_samples); the same samples serve all predictions. They are
    solved for until what is wrong with them is, over the data, below a tenth of that share of the posterior's variance,
    or below 1 %; or it warns.

    Cost: n_samples + 1 products a step of the solver; 2 p · n_samples numbers in float64.

    Args:
        n_samples: how many.
        solver: :class:`CG` with its options.
        seed: of z and ε.

    Raises:
        InvalidOption: a number of samples that is not positive, or a solver that factorises.

    References:
        Wilson, Borovitskiy, Terenin, Mostowsky, Deisenroth 2020, Efficiently sampling functions from Gaussian process
        posteriors (arXiv 2002.09309), equation 11. Antorán et al. 2023 (arXiv 2210.04994), section 3.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 300).unsqueeze(1)
        >>> post = jacana.TangentGP(net).condition(x, x.sin(), noise_std=0.1, method=jacana.Pathwise(n_samples=32))
        >>> prediction = post.predict(torch.tensor([[0.5], [3.0]]))
        >>> bool(prediction.std[1] > prediction.std[0]), prediction.sample(32).shape
        (True, torch.Size([32, 2, 1]))
    """

    exact: ClassVar[bool] = False

    n_samples: int = 64
    solver: Iterative = field(default_factory=CG)
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.n_samples, bool) or not isinstance(self.n_samples, int) or self.n_samples < 1:
            raise InvalidOption(f"n_samples: got {self.n_samples!r}; expected a positive whole number.")
        if not isinstance(self.solver, Iterative):
            raise InvalidOption(f"solver: got {self.solver!r}; expected one that iterates, e.g. jacana.CG(rtol=1e-4).")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidOption(f"seed: got {self.seed!r}; expected a whole number.")

    @property
    def streams(self) -> bool:
        return True

    def condition(self, observations: Observations, *, progress: bool) -> State:
        system = System(observations, self.solver, progress=progress)
        generator = torch.Generator().manual_seed(self.seed)
        prior, missing = system.weight_samples(self.n_samples, generator)
        right = torch.cat([observations.residual.reshape(-1, 1), missing], dim=1)
        return _PathwiseState(
            system, prior, right, generator, system.solve(right, goal=system.sample_goal(self.n_samples))
        )


class _PathwiseState(State):
    """δ̂ and the deviations δ_s − δ̂."""

    def __init__(
        self,
        system: System,
        prior: Float64[Tensor, "p s"],
        right: Float64[Tensor, "nc k"],
        generator: torch.Generator,
        solution: Solution,
    ) -> None:
        super().__init__(system.observations)
        self._system, self._prior, self._right, self._generator = system, prior, right, generator
        self._solution = solution
        weights = system.weights_for(solution)
        self._mean = weights[:, 0].clone()
        self._deviations = prior + weights[:, 1:] - weights[:, :1]

    @property
    def solution(self) -> Solution:
        return self._solution

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._mean

    @property
    def log_evidence(self) -> float:
        return self.evidence.value

    @property
    def evidence(self) -> Estimate:
        return self._system.evidence(self._solution.x[:, :1], self._solution.remainder[:, :1])

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self._spread(x).square().mean(1).view(len(x), -1)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        spread = self._spread(x)
        return spread @ spread.T / spread.shape[1]

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        have = self._deviations.shape[1]
        if n > have:
            raise InvalidOption(
                f"n: got {n} samples of a posterior that was conditioned with {have}; take at most as many, or "
                f"condition with method=jacana.Pathwise(n_samples={n})."
            )
        source = generator if generator is None or generator.device.type == "cpu" else None
        chosen = torch.randperm(have, generator=source)[:n].to(self._deviations.device)
        return self._mean.unsqueeze(1) + self._deviations[:, chosen]

    def extended(self, more: Observations) -> State:
        generator = torch.Generator()
        generator.set_state(self._generator.get_state())
        missing = self._system.missing(more, self._prior, generator)
        right = self._right, torch.cat([more.residual.reshape(-1, 1), missing], dim=1)
        changes = self._deviations - self._prior + self._mean.unsqueeze(1)
        weights = torch.cat([self._mean.unsqueeze(1), changes], dim=1)
        system, solution = self._system.extended(more, right, self._solution, weights)
        return _PathwiseState(system, self._prior, torch.cat(right), generator, solution)

    def _spread(self, x: Examples) -> Float64[Tensor, "mc s"]:
        return push(self.observations.model.lin, x, self._deviations)
