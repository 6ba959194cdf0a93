"""GradientFlow: the network's own way up the log-likelihood, for as long as the prior allows."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, JacanaError, NotConverged
from jacana.linearization import Linearization
from jacana.networks import differentiable
from jacana.posteriors.at_mode import AtMode
from jacana.posteriors.delegated import Delegated
from jacana.posteriors.laplace import Laplace
from jacana.posteriors.method import State
from jacana.posteriors.nonlinear import Nonlinear
from jacana.posteriors.observations import Observations
from jacana.posteriors.relinearize import check_start
from jacana.posteriors.sides import Side
from jacana.solvers import flow

__all__ = ["GradientFlow"]


@final
@dataclass(frozen=True)
class GradientFlow(Nonlinear):
    """The network itself, fine-tuned for as long as the prior allows, with the uncertainty of its tangent.

        dδ / dt = S ∇_δ log p(y | f(x; θ0 + T δ) / T),     δ(0) = 0
        f* | y ≈ N(f(x*; θ0 + T δ(t)) / T, J* (S⁻¹ + Jᵀ H J)⁻¹ J*ᵀ),     J = J(θ0), H at the linear model's mode

    Fine-tuning that is stopped early, without a learning rate and a schedule: the prior says how far each weight may go
    and for how long. In a linear model a direction of which the data know λ times what the prior does ends at
    λ / (1 + λ) of the way to what they say; the flow is 1 − e^(−tλ) of it there. At t = ½, the default, both are within
    .12 of each other for every λ. What was learned of scales, temperature and noise for the linear model then stays
    what it was, and so does its uncertainty. But a network can learn features on its way, which its tangent cannot, and
    what the prior would hold back in the tangent need not be held back there.

    No step makes the log-likelihood less. Costs ``method``, and a gradient of all data for each stage: some ten where
    they say little, √(2λt) and more for the largest λ.

    Args:
        time: t, in units of the prior's variance; zero is the linear model's prior mean.
        method: whose uncertainty it has, :class:`Laplace`, or :class:`MAP` for none.
        rtol: error that one step may make, relative to 1 + ‖S^−½ δ‖.
        max_gradients: after so many it stops early.

    Raises:
        InvalidOption: an impossible option; a prior mean of zero.

    Warns:
        NotConverged: the flow stopped early.

    References:
        Ali, Kolter, Tibshirani 2019 (arXiv 1810.10082), theorem 1: the risk of gradient flow for a time t is at most
        1.69 times that of ridge regression with penalty 1 / t. Lee et al. 2019 (arXiv 1902.06720), for the flow of wide
        networks, which is linear. Sommeijer, Shampine, Verwer 1998, for the steps.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
        >>> x = torch.randn(60, 2)
        >>> labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        >>> gp = jacana.TangentGP(net)
        >>> post = gp.condition(x, labels, likelihood=jacana.Categorical(), method=jacana.GradientFlow())
        >>> post.predict(torch.tensor([[2.0, 2.0], [-2.0, -2.0]])).probabilities().argmax(1).tolist()
        [2, 0]
    """

    time: float | int = 0.5
    method: AtMode = field(default_factory=Laplace)
    rtol: float | int = 0.1
    max_gradients: int = 2_000

    def __post_init__(self) -> None:
        for name, high in (("time", math.inf), ("rtol", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < high:
                raise InvalidOption(f"{name}: got {value!r}; expected a number between 0 and {high}.")
        if isinstance(self.max_gradients, bool) or not isinstance(self.max_gradients, int) or self.max_gradients < 1:
            raise InvalidOption(f"max_gradients: got {self.max_gradients!r}; expected a positive whole number.")
        if not isinstance(self.method, AtMode):
            raise InvalidOption(
                f"method: got {self.method!r}; expected jacana.Laplace() or jacana.MAP(), whose uncertainty is about a "
                "point."
            )

    def by(self, method: AtMode) -> GradientFlow:
        return replace(self, method=method)

    def after(self, side: Side, *, progress: bool) -> State:
        check_start(side.observations.model)
        rtol, most = float(self.rtol), self.max_gradients
        with differentiable():
            hill = _Hill(side.observations)
            found = flow(hill, hill.start, float(self.time), rtol=rtol, most=most, progress=progress)
        if found.time < self.time:
            warnings.warn(
                f"GradientFlow: stopped at time {found.time:.2g} of {self.time:.2g} after {found.evaluations} "
                "gradients, for the data say far more than the prior along some direction; take a smaller prior_std, a "
                f"shorter time, or more gradients (max_gradients, now {self.max_gradients}).",
                NotConverged,
                stacklevel=4,
            )
        inner = replace(self.method, method=self.side(side.observations)).after(side, progress=progress)
        return _GradientFlowState(self, inner, hill.change(found.u), progress=progress)


@final
class _Hill:
    """Log p(y | f(x; θ0 + T S^½ u) / T) as a function of u, where the prior is round."""

    def __init__(self, observations: Observations) -> None:
        self._data, model = observations, observations.model
        self._std = model.prior.vector(model.lin.device)
        self.start = torch.zeros_like(self._std)

    def change(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        """δ."""
        return self._std * u

    def __call__(self, u: Float64[Tensor, " p"]) -> tuple[float, Float64[Tensor, " p"]]:
        """The value and its slope, S^½ Jᵀ g; −∞ and nothing where the network fails or says nothing finite."""
        data, model = self._data, self._data.model
        network, first, value, slope = model.lin.network, 0, 0.0, torch.zeros_like(u)
        pieces = network.split(model.temperature * self.change(u))
        weights = [(old + new).requires_grad_() for old, new in zip(network.values, pieces, strict=True)]
        for batch in data.x.batches(model.lin.batch_size):
            part = slice(first, first := first + len(batch))
            likelihood, y = data.likelihood.part(part.start, part.stop), data.targets[part]
            try:
                out = network(weights, batch)
            except JacanaError:
                return -math.inf, torch.full_like(u, math.nan)
            f = out.detach().to(torch.float64) / model.temperature
            value += float(likelihood.log_prob(f, y).sum())
            pulled = torch.autograd.grad(out, weights, likelihood.gradient(f, y).to(out), allow_unused=True)
            slope += network.flatten([
                torch.zeros_like(w) if g is None else g for w, g in zip(weights, pulled, strict=True)
            ])  # fmt: skip
        return (value if math.isfinite(value) else -math.inf), self._std * slope


@final
class _GradientFlowState(Delegated):
    """The network where the flow ended, with the deviations of the linear model's posterior.

    Args:
        options: its method.
        inner: the linear model's posterior.
        weights: δ at the end.
        progress: show bars when more examples come.
    """

    def __init__(self, options: GradientFlow, inner: State, weights: Float64[Tensor, " p"], *, progress: bool) -> None:
        first = inner.observations
        origin = first.model.temperature * weights
        model = replace(first.model, lin=first.model.lin.moved(origin), origin=origin)
        super().__init__(replace(first, model=model, offset=model.mean(first.x)), inner)
        self._options, self._weights, self._progress = options, weights, progress

    @property
    def tangent(self) -> Linearization:
        return self.inner.tangent

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._weights

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        deviations = self.inner.sample_weights(n, generator) - self.inner.weights.unsqueeze(1)
        return self._weights.unsqueeze(1) + deviations

    def extended(self, more: Observations) -> State:
        """All of them from the first tangent, so that they come to the same end as all at once."""
        first = self.inner.observations
        more = replace(more, model=first.model, offset=first.model.mean(more.x))
        return self._options.condition(first.followed_by(more), progress=self._progress)
