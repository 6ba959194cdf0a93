"""Variational: the Gaussian that is nearest to the posterior, full or with independent weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Likelihood
from jacana.networks import Examples
from jacana.posteriors.families import Family, Fitted, FullCovariance
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.posteriors.side_choice import chosen, side_of

__all__ = ["Variational"]


@final
@dataclass(frozen=True)
class Variational(Method):
    """The Gaussian q of a family with the largest lower bound of the evidence.

        log p(y) ≥ Σ_i E_q log p(y_i | f_i) − KL(q ‖ N(0, S)),     f_i = m_i + J_i δ,  δ ~ q

    Where :class:`Laplace` looks at the mode, this averages over q: better where the posterior is skewed, as for labels
    that a few examples tell apart. Each expectation is an integral over the c outputs of one example, by fixed nodes,
    so that the bound is a function without noise; it grows at every step, by natural gradients. Costs a factorisation
    a step as :class:`Laplace`, ten to thirty of them.

    Args:
        family: :class:`~jacana.families.FullCovariance` (the default), whose optimum has the precision
            S⁻¹ + Jᵀ E[H] J, or :class:`~jacana.families.MeanField`, with independent weights, as in the paper.
        method: where the algebra is done, as for :class:`Laplace`; it has to factorise.
        rtol: it ends where a step gains less than so much of the bound.
        max_steps: at most so many.

    Raises:
        InvalidOption: another family or method, or a tolerance out of range.

    Warns:
        NotConverged: the steps did not end.

    References:
        Opper and Archambeau 2009, The variational Gaussian approximation revisited, equations 5 to 9. Khan and Rue 2023
        (arXiv 2107.04562), equations 11 and 12. Maddox et al. 2021 (arXiv 2103.01439), section 4.2; their scales had no
        gradient.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))
        >>> x, labels = torch.randn(30, 2), torch.arange(30) % 2
        >>> gp, likelihood = jacana.TangentGP(net), jacana.Categorical()
        >>> q = gp.condition(x, labels, likelihood=likelihood, method=jacana.Variational())
        >>> meanfield = jacana.Variational(jacana.families.MeanField())
        >>> q.log_evidence > gp.condition(x, labels, likelihood=likelihood, method=meanfield).log_evidence
        True
    """

    exact: ClassVar[bool] = False

    family: Family = field(default_factory=FullCovariance)
    method: Method | None = None
    rtol: float | int = 1e-7
    max_steps: int = 200

    def __post_init__(self) -> None:
        if not isinstance(self.family, Family):
            raise InvalidOption(f"family: got {self.family!r}; expected jacana.families.FullCovariance() or MeanField().")
        if self.method is not None and (not isinstance(self.method, Method) or self.method.streams):
            raise InvalidOption(
                f"method: got {self.method!r}; expected jacana.FunctionSpace() or jacana.WeightSpace(), which "
                "factorise, or None."
            )
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, int | float) or not 0.0 < self.rtol < 1.0:
            raise InvalidOption(f"rtol: got {self.rtol!r}; expected a number between 0 and 1, e.g. 1e-7.")
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise InvalidOption(f"max_steps: got {self.max_steps!r}; expected a positive whole number.")

    def check(self, likelihood: Likelihood) -> None:
        pass

    def condition(self, observations: Observations, *, progress: bool) -> State:
        method = chosen(observations) if self.method is None else self.method
        if method.streams:
            raise InvalidOption(
                f"method: {observations.n * observations.c:,} function values and "
                f"{observations.model.lin.n_parameters:,} parameters are too many to factorise a side, which Variational "
                "needs; take jacana.Laplace(), or fewer examples."
            )
        side = side_of(observations, method, progress=progress)
        return _VariationalState(self, self.family.fit(side, self.rtol, self.max_steps), progress=progress)


class _VariationalState(State):
    """The fitted q."""

    def __init__(self, options: Variational, q: Fitted, *, progress: bool) -> None:
        super().__init__(q.side.observations)
        self._options, self._q, self._progress = options, q, progress

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._q.side.weights(self._q.u)

    @property
    def log_evidence(self) -> float:
        """The bound."""
        return self._q.bound

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self._q.spread.variance(x)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        return self._q.spread.blocks(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self._q.spread.covariance(x)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self.weights.unsqueeze(1) + self._q.spread.deviations(n, generator)

    def extended(self, more: Observations) -> State:
        return self._options.condition(self.observations.followed_by(more), progress=self._progress)
