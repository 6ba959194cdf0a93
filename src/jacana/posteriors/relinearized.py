"""Relinearized: the posterior at the network's own mode, where Gauss-Newton steps from one tangent to the next end."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, NotConverged, NotPositiveDefinite
from jacana.posteriors.at_mode import AtMode
from jacana.posteriors.delegated import Delegated
from jacana.posteriors.laplace import Laplace
from jacana.posteriors.method import State
from jacana.posteriors.mode import Mode, mode_of
from jacana.posteriors.nonlinear import Nonlinear
from jacana.posteriors.observations import Observations
from jacana.posteriors.relinearize import check_start, log_posterior
from jacana.posteriors.side_choice import side_of
from jacana.posteriors.sides import Side

__all__ = ["Relinearized"]

_TRIES = 28
"""The last at a damping of 10¹⁸: where the data say much, only a large one is felt."""

_LEAST = 0.1
"""Of what the tangent promised, so much has to come."""

_TRUSTED = 0.6
"""Where so much comes, the next step may be longer."""

_FACTOR = 5.0
"""By which a step's damping grows and falls."""

_ROUNDING = 1e-12


@final
@dataclass(frozen=True)
class Relinearized(Nonlinear):
    """The posterior on the way to the mode of the network itself: its mean is what the network says there.

        θ̂ = argmax Ψ(θ),     Ψ(θ) = log p(y | f(x; θ) / T) − ½ (θ − θ0)ᵀ S⁻¹ (θ − θ0) / T²
        f* | y ≈ N(f(x*; θ̂) / T, J* (S⁻¹ + Jᵀ H J)⁻¹ J*ᵀ),     J = J(θ̂)

    Each step goes to the mode of the tangent at the last point (Gauss and Newton's), under a prior that is narrowed to
    1 / (1 + μ) and moved as much towards that point (Levenberg and Marquardt's damping, in the metric of the prior): a
    μ is taken only if at least a tenth of what the tangent promised of Ψ comes, so that no step makes Ψ worse. The
    prior stays about the weights θ0 that the network was given with. It is fine-tuning to the mode of a stated
    posterior, with neither learning rate nor schedule; of a network that is linear in θ it is ``method`` itself.

    Steps end where the tangent promises little more, or there have been ``steps``, and the posterior is made of that
    point; it is the mode where ``rtol=0`` and ``steps`` are enough for that, which for little noise may be hundreds.

    Each step costs what ``method`` costs on the examples that are conditioned on, their kernel above all.

    Args:
        steps: the most that are made.
        method: what is made of the point where they end, :class:`Laplace` or :class:`MAP`, with the side on which they
            are computed.
        rtol: steps end after one that was promised to gain less than this part of what all of them did.

    Raises:
        InvalidOption: an impossible option; a prior mean of zero.

    References:
        Antorán et al. 2022 (arXiv 2206.08900), section 3, for the linear model at a point that is no mode of it. Khan,
        Immer, Abedi, Korzepa 2019 (arXiv 1906.01930), for the Gaussian about a network's mode. Marquardt 1963.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-2, 2, 30).unsqueeze(1)
        >>> gp, y = jacana.TangentGP(net), (3 * x).sin()
        >>> linear = gp.condition(x, y, noise_std=0.1)
        >>> post = gp.condition(x, y, noise_std=0.1, method=jacana.Relinearized())
        >>> bool((post.predict(x).mean - y).norm() < (linear.predict(x).mean - y).norm())
        True
    """

    steps: int = 10
    method: AtMode = field(default_factory=Laplace)
    rtol: float = 1e-2

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, Integral) or self.steps < 1:
            raise InvalidOption(f"steps: got {self.steps!r}; expected a positive whole number.")
        if not isinstance(self.method, AtMode):
            raise InvalidOption(
                f"method: got {self.method!r}; expected jacana.Laplace() or jacana.MAP(), which are made at a point. "
                "For others take steps one by one, gp = gp.relinearize(post), and condition the last."
            )
        if isinstance(self.rtol, bool) or not isinstance(self.rtol, Real) or not 0.0 <= float(self.rtol) < 1.0:
            raise InvalidOption(f"rtol: got {self.rtol!r}; expected zero or a number below one, e.g. 1e-2.")

    def by(self, method: AtMode) -> Relinearized:
        return replace(self, method=method)

    def after(self, side: Side, *, progress: bool) -> State:
        """The posterior, where the side of the first tangent is there."""
        check_start(side.observations.model)
        method = self.side(side.observations)
        here, damping = _Point(side), 0.0
        start = here.value
        for _ in range(self.steps):
            step = here.step(damping)
            if step is None:
                break
            here, damping = _Point(side_of(step.observations, method, progress=progress)), step.damping
            if step.promised <= self.rtol * (step.value - start) and damping <= _FACTOR:
                break
        inner = replace(self.method, method=method).state(here.side, here.mode, progress=progress)
        return _RelinearizedState(self, side.observations, inner, progress=progress)


@final
@dataclass(frozen=True)
class _Step:
    """A step that was taken.

    Attributes:
        observations: with the model of the tangent there.
        value: Ψ there.
        promised: what the tangent before said that it would gain.
        damping: what the next is tried with.
    """

    observations: Observations
    value: float
    promised: float
    damping: float


@final
class _Point:
    """A point on the way, with the side of its tangent."""

    def __init__(self, side: Side) -> None:
        self.side = side
        model = side.observations.model
        std = model.prior.vector(model.lin.device)
        self.origin = torch.zeros_like(std) if model.origin is None else model.origin
        self._scale = model.temperature * std

    @cached_property
    def f(self) -> Float64[Tensor, "n c"]:
        """What the network says here, over T."""
        data = self.side.observations
        return data.model.output(data.x)

    @cached_property
    def value(self) -> float:
        """Ψ."""
        return log_posterior(self.side.observations, self.side.observations.model.lin, self.origin)

    @property
    def mode(self) -> Mode:
        """The point, as if it were the mode of its tangent."""
        root = self.side.observations.likelihood.curvature_root(self.f)
        return Mode(self.side.zero(), self.f, self.value, self.side.at(root), root, 0)

    def step(self, damping: float) -> _Step | None:
        """The first that brings a tenth of what its tangent promised; None where nothing is left to gain."""
        data = self.side.observations
        for _ in range(_TRIES):
            origin, promised = self._proposed(1.0 / (1.0 + damping))
            if 0.0 <= promised <= _ROUNDING * (1.0 + abs(self.value)):
                return None
            lin = data.model.lin.moved(origin - self.origin)
            value = log_posterior(data, lin, origin)
            came = (value - self.value) / promised if promised > 0.0 else -math.inf  # or no mode was found
            if came >= _LEAST:
                model = replace(data.model, lin=lin, origin=origin)
                there = replace(data, model=model, offset=model.mean(data.x))
                eased = damping / _FACTOR if came > _TRUSTED else damping
                return _Step(there, value, promised, eased if eased > 0.5 else 0.0)
            damping = max(1.0, _FACTOR * damping)
        return None

    def _proposed(self, share: float) -> tuple[Float64[Tensor, " p"], float]:
        """The mode of the tangent under the damped prior, as θ − θ0, and what of Ψ the tangent says it gains."""
        side, data = self.side, self.side.observations
        if share < 1.0:
            nearer = None if data.model.origin is None else share * data.model.origin
            model = replace(data.model, prior=data.model.prior.times(math.sqrt(share)), origin=nearer)
            offset = self.f - share * (self.f - data.offset)
            side = side.narrowed(replace(data, model=model, offset=offset), math.sqrt(share))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConverged)  # Ψ itself says what a proposal is worth
            try:
                found = mode_of(side)
            except NotPositiveDefinite:  # under a narrower prior it may be
                return self.origin, -math.inf
        origin = (1.0 - share) * self.origin + data.model.temperature * side.weights(found.u)
        fit = float(data.likelihood.log_prob(found.f, data.targets).sum())
        return origin, fit - 0.5 * float((origin / self._scale).square().sum()) - self.value


@final
class _RelinearizedState(Delegated):
    """What is made of the last point, whose weights lie where the steps ended."""

    def __init__(self, options: Relinearized, first: Observations, inner: State, *, progress: bool) -> None:
        super().__init__(inner.observations, inner)
        self._options, self._first, self._progress = options, first, progress

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        model = self.observations.model
        if model.origin is None:
            return torch.zeros(model.lin.n_parameters, dtype=torch.float64, device=model.lin.device)
        return model.origin / model.temperature

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self.weights.unsqueeze(1) + self.inner.sample_weights(n, generator)

    def extended(self, more: Observations) -> State:
        """All of them from the first tangent, so that they come to the same end as all at once."""
        first = self._first
        more = replace(more, model=first.model, offset=first.model.mean(more.x))
        return self._options.condition(first.followed_by(more), progress=self._progress)
