"""Posterior: a tangent process given data."""

from __future__ import annotations

from numbers import Integral
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods import Gaussian, Likelihood, Weighted, layers
from jacana.linearization import push
from jacana.networks import Data, Examples
from jacana.operators import Estimate
from jacana.posteriors.leave_one_out import LeaveOneOut, leave_one_out
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations, observe
from jacana.prediction import Prediction, Source
from jacana.solvers import Solution

__all__ = ["Posterior"]


@final
class Posterior:
    """f | y, with δ | y ~ N(δ̂, ·): made by :meth:`TangentGP.condition`, never changed afterwards.

    Attributes:
        method: how it was computed.
        reason: why so, with counted figures; ``"as asked"`` where the method was named.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 9).unsqueeze(1)
        >>> post = jacana.TangentGP(net).condition(x[:5], x[:5].sin(), noise_std=0.1)
        >>> more = post.condition(x[5:], x[5:].sin())
        >>> more.predict(x).mean.shape, more.n_examples
        (torch.Size([9, 1]), 9)
    """

    def __init__(self, method: Method, state: State, reason: str) -> None:
        self.method, self.reason = method, reason
        self._state = state

    @property
    def likelihood(self) -> Likelihood:
        """How the observations that it was conditioned on come from f."""
        return self._state.observations.likelihood

    @property
    def observations(self) -> Observations:
        """What it was conditioned on, with its prior."""
        return self._state.observations

    @property
    def state(self) -> State:
        """What its method has computed."""
        return self._state

    @property
    def n_examples(self) -> int:
        """How many examples it was conditioned on."""
        return self._state.observations.n

    @property
    def n_outputs(self) -> int:
        """C."""
        return self._state.observations.c

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        """The posterior mean δ̂ of the weight change, in ``named_parameters`` order."""
        return self._state.weights

    @property
    def solution(self) -> Solution | None:
        """What an iterative solver reached for the mean: steps, residual, seconds; None without one."""
        return self._state.solution

    @property
    def log_evidence(self) -> float:
        """Log p(y) = log N(y; m, K + Σ), the logarithm of the marginal likelihood.

        By an iterative solver its determinant is an estimate, see :attr:`evidence`; by :class:`NystromFeatures` it is a
        lower bound.
        """
        return self._state.log_evidence

    @property
    def evidence(self) -> Estimate:
        """Log p(y) with its standard error, zero where a matrix was factorised."""
        return self._state.evidence

    def examples(self, x: Data, name: str = "x") -> Examples:
        """Inputs checked as :meth:`predict` checks them, for callers that name their argument otherwise."""
        return self._state.observations.model.lin.examples(x, name)

    def predict(self, x: Data, observed: bool = False) -> Prediction:
        """What the posterior says of new examples.

        Args:
            x: m examples.
            observed: of observations y, rather than of the latent f: with the noise, or as the likelihood has them.

        Raises:
            InvalidData: examples that cannot be used.
            InvalidOption: ``observed`` where the noise was given for each old example.
        """
        observations = self._state.observations
        lin = observations.model.lin
        examples = lin.examples(x).copied()
        if lin.findings(examples).n_outputs != observations.c:
            raise InvalidData("x: the network gives another number of outputs than on the data it was conditioned on.")
        source = _PosteriorSource(self._state, examples)
        given = observations.likelihood.noise_std if isinstance(observations.likelihood, Gaussian) else None
        if observed and given is not None and given.ndim == 2:  # refused here rather than at the first number
            raise InvalidOption(
                "observed: got True, but the noise was given for each example it was conditioned on, and new examples "
                "have none; take the latent prediction and add the noise of these examples."
            )
        return Prediction(source, flat=observations.flat, observed=bool(observed))

    def condition(self, x: Data, y: Any = None, noise_std: Any = None) -> Posterior:
        """The posterior given more data too; the same as conditioning on all at once, by the same method.

        Function space extends its factorisation (n² m + m³/3 operations for m new observations), weight space adds to
        its Fisher matrix; Nyström features keep their landmarks, so condition anew once the data have grown much.

        Args:
            x: m more examples, or a DataLoader of (input, target).
            y: their targets.
            noise_std: their noise, if it differs.

        Raises:
            InvalidData: data that cannot be used. This posterior stays as it was.
            InvalidOption: the noise was given for each old example, and is missing for the new ones; or weights were.
        """
        old = self._state.observations
        gaussian = isinstance(old.likelihood, Gaussian)
        if isinstance(old.likelihood, Gaussian) and noise_std is None and old.likelihood.noise_std.ndim == 2:
            raise InvalidOption("noise_std: got None; it was given for each example, so give it for the new ones too.")
        if any(isinstance(layer, Weighted) for layer in layers(old.likelihood)):
            raise InvalidOption(
                "likelihood: got weights for each old example, and the new ones have none; condition the TangentGP on "
                "all examples at once, with a weight for each."
            )
        if noise_std is not None and not gaussian:
            raise InvalidOption(f"noise_std: got {noise_std!r} for a {type(old.likelihood).__name__} likelihood.")
        likelihood = old.likelihood if noise_std is None else Gaussian(noise_std)
        more = observe(old.model, x, y, likelihood, streams=self.method.streams)
        return Posterior(self.method, self._state.extended(more), self.reason)

    def sample_weights(self, n: int = 1, generator: torch.Generator | None = None) -> Float64[Tensor, "p n"]:
        """Samples of the weight change δ: each makes a function m(x) + J(x) δ_s, at any x, by one jvp.

        By :class:`GradientFlow` what the network says and J(x) (δ_s − δ̂), with the tangent where it started.

        Raises:
            InvalidOption: ``n`` not a positive whole number.
        """
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise InvalidOption(f"n: got {n!r}; expected a positive whole number of samples.")
        return self._state.sample_weights(int(n), generator)

    def leave_one_out(self) -> LeaveOneOut:
        """Residuals and log-probabilities of each example given all others, in closed form; nothing is fitted again.

        Costs one inversion of the factor; an example's c outputs are left out together.

        Example:
            >>> import jacana, torch
            >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
            >>> x = torch.linspace(-1, 1, 9).unsqueeze(1)
            >>> left_out = jacana.TangentGP(net).condition(x, x.sin(), noise_std=0.1).leave_one_out()
            >>> left_out.residual.shape, left_out.log_probability.shape
            (torch.Size([9, 1]), torch.Size([9]))
        """
        return leave_one_out(self._state)

    def __repr__(self) -> str:
        return f"Posterior({self.n_examples} examples, {self.method}, {self.likelihood})"


class _PosteriorSource(Source):
    def __init__(self, state: State, x: Examples) -> None:
        self._state, self._x = state, x
        self._model = state.observations.model

    def mean(self) -> Float64[Tensor, "m c"]:
        lin, weights = self._model.lin, self._model.beyond(self._state.weights)
        if (
            lin.network.eps > torch.finfo(torch.float32).eps
        ):  # a tangent pass in half precision would drown the posterior's deviation
            change = push(lin, self._x, weights.unsqueeze(1)).view(len(self._x), -1)
        else:
            change = lin.jvp(self._x, weights).to(torch.float64)
        return self._model.output(self._x) + change

    def variance(self) -> Float64[Tensor, "m c"]:
        return self._state.variance(self._x)

    def covariance(self) -> Float64[Tensor, "mc mc"]:
        return self._state.covariance(self._x)

    def sample(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "n m c"]:
        weights = self._state.sample_weights(n, generator)
        changes = push(self._state.tangent, self._x, weights - self._state.weights.unsqueeze(1))
        mean = self.mean()
        return mean + changes.T.reshape(n, *mean.shape)

    def blocks(self) -> Float64[Tensor, "m c c"]:
        return self._state.blocks(self._x)

    @property
    def likelihood(self) -> Likelihood:
        return self._state.observations.likelihood
