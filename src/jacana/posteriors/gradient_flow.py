"""GradientFlow: the network's own way up the log-likelihood, for as long as the prior allows."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, JacanaError, NotConverged
from jacana.likelihoods import Likelihood
from jacana.linearization import Linearization
from jacana.networks import differentiable
from jacana.posteriors.at_mode import AtMode
from jacana.posteriors.delegated import Delegated
from jacana.posteriors.laplace import Laplace
from jacana.posteriors.map import MAP
from jacana.posteriors.method import State
from jacana.posteriors.nonlinear import Nonlinear
from jacana.posteriors.observations import Observations
from jacana.posteriors.point import PointState
from jacana.posteriors.relinearize import check_start
from jacana.posteriors.sides import Side
from jacana.solvers import Height, flow

__all__ = ["GradientFlow", "GradientFlowState"]

_ROUNDINGS = 16.0
"""Of an output, in eps: what the passes of a deep network may lose."""


@final
@dataclass(frozen=True)
class GradientFlow(Nonlinear):
    """The network itself, fine-tuned for as long as the prior allows, with the uncertainty of its tangent.

        dδ / dt = S ∇_δ log p(y | f(x; θ0 + T δ) / T),     δ(0) = 0
        f* | y ≈ N(f(x*; θ0 + T δ(t)) / T, J* (S⁻¹ + Jᵀ H J)⁻¹ J*ᵀ),     J = J(θ0), H at the linear model's mode

    Fine-tuning that is stopped early, without a learning rate and a schedule: the prior says how far each weight may go
    and for how long. In a linear model with Gaussian noise a direction of which the data know λ times what the prior
    does ends at λ / (1 + λ) of the way to what they say; the flow is 1 − e^(−tλ) of it there. At t = ½, the default,
    both are within .12 of each other for every λ. But a network can learn features on its way; its tangent cannot.

    It flows from where the tangent is, and its uncertainty is that of the tangent there: what was learned of scales and
    noise for the linear model stays. The network may be surer of labels than that model at the end of its way;
    :class:`NTKClassifier` learns by how much. Samples are deviations of the tangent, J (δ_s − δ̂), from what the network
    says.

    No step makes the log-likelihood less, up to rounding. It ends before t where all data together could gain less
    than ``rtol`` of what the prior has lost, ½ δᵀ S⁻¹ δ, or move no direction by ``rtol`` of its posterior standard
    deviation, ½ ``rtol``²: a wide prior lets a network know its labels by heart, which takes for ever. Costs what
    ``method`` costs, and a gradient of all data for each stage of a step: ten or so where they say little, else in
    proportion to the root of the largest λ, tens to hundreds. In float32, under a prior so wide that small changes
    grow on the way, rounding decides where it ends.

    Args:
        time: t, in units of the prior's variance; at most so long.
        method: whose uncertainty it has, :class:`Laplace`; or :class:`MAP` for none, which needs no kernel.
        rtol: error that one step may make, relative to 1 + ‖S^−½ δ‖; that of all together is about as large.
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
                below = "" if high == math.inf else f" below {high:g}"
                raise InvalidOption(f"{name}: got {value!r}; expected a positive number{below}, e.g. 0.5 or 0.1.")
        if (
            isinstance(self.max_gradients, bool)
            or not isinstance(self.max_gradients, Integral)
            or self.max_gradients < 1
        ):
            raise InvalidOption(f"max_gradients: got {self.max_gradients!r}; expected a positive whole number.")
        if not isinstance(self.method, AtMode):
            raise InvalidOption(
                f"method: got {self.method!r}; expected jacana.Laplace() or jacana.MAP(), whose uncertainty is about a "
                "point."
            )

    def by(self, method: AtMode) -> GradientFlow:
        return replace(self, method=method)

    def condition(self, observations: Observations, *, progress: bool) -> State:
        if not isinstance(self.method, MAP):
            return super().condition(observations, progress=progress)
        check_start(observations.model)
        weights = self.weights(observations, progress=progress)
        return GradientFlowState(self, _Start(observations), weights, progress=progress)

    def after(self, side: Side, *, progress: bool) -> State:
        if isinstance(self.method, MAP):
            return self.condition(side.observations, progress=progress)
        check_start(side.observations.model)
        weights = self.weights(side.observations, progress=progress)
        inner = replace(self.method, method=self.side(side.observations)).after(side, progress=progress)
        return GradientFlowState(self, inner, weights, progress=progress)

    def weights(self, observations: Observations, *, progress: bool) -> Float64[Tensor, " p"]:
        """By how much δ changes on the way that these make."""
        rtol, most = float(self.rtol), self.max_gradients
        with differentiable():
            hill = _Hill(observations)
            found = flow(hill, hill.start, float(self.time), rtol=rtol, most=most, top=hill.top, progress=progress)
        if found.time < self.time:
            why = "no step of any length goes up from there; take the network in float64, or a smaller prior_std"
            if found.evaluations >= self.max_gradients - 1:
                why = (
                    "the data say far more than the prior along some direction; take a smaller prior_std, a shorter "
                    f"time, or more gradients (max_gradients, now {self.max_gradients})"
                )
            warnings.warn(
                f"GradientFlow: stopped at time {found.time:.2g} of {self.time:.2g} after {found.evaluations} "
                f"gradients: {why}.",
                NotConverged,
                stacklevel=5,
            )
        return hill.change(found.u)


@final
class _Hill:
    """Log p(y | f(x; θ + T S^½ u) / T) as a function of u, where the prior is round."""

    def __init__(self, observations: Observations) -> None:
        self._data, model = observations, observations.model
        self._std = model.prior.vector(model.lin.device)
        self.start = torch.zeros_like(self._std)
        self.top = float(observations.likelihood.saturated(observations.targets).sum())
        self._values = model.lin.network.values
        self._network = model.lin.network.moved(self.start)  # checkpoints compute anew with what the network has then

    def change(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        """δ."""
        return self._std * u

    def __call__(self, u: Float64[Tensor, " p"]) -> Height:
        data, network, first, value, noise = self._data, self._network, 0, 0.0, 0.0
        slope, temperature = torch.zeros_like(u), data.model.temperature
        with torch.no_grad():
            pieces = network.split(temperature * self.change(u))
            for leaf, old, piece in zip(network.leaves, self._values, pieces, strict=True):
                leaf.copy_(old + piece)
        for batch in data.x.batches(data.model.lin.batch_size):
            part = slice(first, first := first + len(batch))
            likelihood, y = data.likelihood.part(part.start, part.stop), data.targets[part]
            try:
                out, leaves = network.record(batch)
            except JacanaError:  # so far away that it fails, or its outputs are not finite
                return Height(-math.inf, slope, 0.0)
            f = out.detach().to(torch.float64) / temperature
            gradient = likelihood.gradient(f, y)
            value += float(likelihood.log_prob(f, y).sum())
            noise += float((gradient * f).abs().sum())
            if out.requires_grad:
                pulled = torch.autograd.grad(out, leaves, gradient.to(out), allow_unused=True, materialize_grads=True)
                slope += network.flatten(pulled)
        return Height(value, self._std * slope, _ROUNDINGS * network.eps * noise)


@final
class _Start(PointState):
    """The tangent itself, where nobody asks how far its mode is and what else it could be."""

    name: ClassVar[str] = "GradientFlow(method=MAP())"
    cure: ClassVar[str] = "jacana.GradientFlow()"

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return torch.zeros(self.tangent.n_parameters, dtype=torch.float64, device=self.tangent.device)

    def extended(self, more: Observations) -> State:
        return _Start(self.observations.followed_by(more))


@final
class GradientFlowState(Delegated):
    """The network where the flow ended, with the deviations of the linear model's posterior.

    Args:
        options: its method.
        inner: the linear model's posterior.
        weights: by how much δ changed on the way.
        progress: show bars when more examples come.
    """

    def __init__(self, options: GradientFlow, inner: State, weights: Float64[Tensor, " p"], *, progress: bool) -> None:
        first = inner.observations
        change = first.model.temperature * weights
        origin = change if first.model.origin is None else first.model.origin + change
        model = replace(first.model, lin=first.model.lin.moved(change), origin=origin)
        super().__init__(replace(first, model=model, offset=model.mean(first.x)), inner)
        self._options, self._weights, self._progress = options, origin / model.temperature, progress

    @property
    def tangent(self) -> Linearization:
        return self.inner.tangent

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._weights

    @property
    def first(self) -> Observations:
        """The observations at the first tangent."""
        return replace(self.inner.observations, likelihood=self.observations.likelihood)

    def told(self, likelihood: Likelihood) -> GradientFlowState:
        """The same with a likelihood that says something else of new observations alone."""
        other = copy.copy(self)
        other.observations = replace(self.observations, likelihood=likelihood)
        return other

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        deviations = self.inner.sample_weights(n, generator) - self.inner.weights.unsqueeze(1)
        return self._weights.unsqueeze(1) + deviations

    def extended(self, more: Observations) -> State:
        """All of them from the first tangent, so that they come to the same end as all at once."""
        first = self.first
        more = replace(more, model=first.model, offset=first.model.mean(more.x))
        return self._options.condition(first.followed_by(more), progress=self._progress)
