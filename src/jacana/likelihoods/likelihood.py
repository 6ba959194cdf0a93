"""Likelihood: how observations come from function values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods.nodes import Nodes

__all__ = ["Likelihood", "beside", "normal", "numbers", "plain"]


class Likelihood(ABC):
    """p(y | f), independent over examples.

    A new likelihood is a subclass with :meth:`log_prob`, :meth:`gradient` and :meth:`curvature`; where there is a
    shorter way to multiply with the curvature or to its root, it overrides these. New observations are drawn by
    :meth:`sample` and have the mean and the variance of :meth:`conditional_moments`; one of classes has
    :meth:`probabilities`. Everything is computed in the dtype and on the device of f.

    Example:
        >>> import jacana, torch
        >>> class Laplacian(jacana.Likelihood):
        ...     def log_prob(self, f, y):
        ...         return -(y - f).abs().sum(1) - f.shape[1] * torch.tensor(2.0).log()
        ...
        ...     def gradient(self, f, y):
        ...         return (y - f).sign()
        ...
        ...     def curvature(self, f):
        ...         return torch.eye(f.shape[1]).expand(len(f), -1, -1)  # the expected square of the gradient
        >>> jacana.Fisher(torch.nn.Linear(2, 3), torch.randn(5, 2), Laplacian())
        Fisher(9 x 9, torch.float32)
    """

    @abstractmethod
    def log_prob(self, f: Float[Tensor, "n c"], y: Shaped[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """Log p(yᵢ | fᵢ) of each example, for ``y`` as :meth:`targets` returns it."""

    @abstractmethod
    def gradient(self, f: Float[Tensor, "n c"], y: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """∂ log p(yᵢ | fᵢ) / ∂fᵢ."""

    @abstractmethod
    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        """H = E_{y ~ p(y|f)} [−∇_f² log p(y | f)] of each example, positive semidefinite."""

    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        """H V of each example."""
        return self.curvature(f).to(v) @ v

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c r"]:
        """R with R Rᵀ = H.

        Raises:
            InvalidOption: H is not positive semidefinite beyond rounding.
        """
        values, vectors = torch.linalg.eigh(self.curvature(f).to(f))
        if bool((values < -(f.shape[1] * torch.finfo(f.dtype).eps) * values.abs().amax(1, keepdim=True)).any()):
            raise InvalidOption(
                f"likelihood: the curvature of {type(self).__name__} has a negative eigenvalue, {float(values.min())}; "
                "a Fisher matrix needs the expected curvature, which has none."
            )
        return vectors * values.clamp(min=0.0).sqrt().unsqueeze(1)

    def saturated(self, y: Shaped[Tensor, "n ..."]) -> Float64[Tensor, " n"]:
        """Sup over f of log p(yᵢ | f) of each example, for ``y`` as :meth:`targets` returns it; here ∞: not known.

        That of the saturated model: the deviance of f is twice what log p(yᵢ | f) lacks of it.

        References:
            McCullagh, Nelder 1989, Generalized linear models, section 2.3.
        """
        return torch.full((len(y),), math.inf, dtype=torch.float64, device=y.device)

    @property
    def by_output(self) -> bool:
        """Whether target k comes from output k alone, p(y | f) = Π_k p(y_k | f_k), by the same rule for each."""
        return False

    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Shaped[Tensor, "n ..."]:
        """Draw yᵢ ~ p(y | fᵢ) for each example, as :meth:`targets` returns them.

        Args:
            f: function values.
            generator: the source of randomness; torch's default generator if None.

        Raises:
            InvalidOption: the likelihood does not say how.
        """
        raise self._lacks("sample(f, generator=None)", "draws a y for each example")

    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """E[y | f] and var[y | f] of each target; of labels, those of the indicator of each class.

        Raises:
            InvalidOption: the likelihood does not say them.
        """
        raise self._lacks("conditional_moments(f)", "gives the mean and the variance of y, (n, d) each")

    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
        """E y and var y of a new observation of each example, where f ~ N(mean, covariance).

            E y = E E[y | f],     var y = E var[y | f] + var E[y | f]

        In closed form for every likelihood of the package, which is exact but for classes (see :meth:`probit`); here
        by 64 nodes for one output and by 256 for more, from :meth:`conditional_moments`.

        Args:
            mean: of f at m examples.
            covariance: of the outputs of each example.

        Raises:
            InvalidData: a covariance that is none.
            InvalidOption: the likelihood has no :meth:`conditional_moments`, or its noise is of other examples.
        """
        nodes, m = Nodes.standard(mean.shape[1]), len(mean)
        expected = nodes.expect(lambda f: torch.stack(self.conditional_moments(f), 1), mean, covariance)
        expectation, within = expected.unbind(1)

        def between(f: Float[Tensor, "k c"]) -> Float[Tensor, "k d"]:
            return (self.conditional_moments(f)[0] - expectation.repeat(len(f) // m, 1)).square()

        return expectation, within + nodes.expect(between, mean, covariance)

    def log_expected(
        self, mean: Float[Tensor, "n c"], covariance: Float[Tensor, "n c c"], y: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, " n"]:
        """Log E p(yᵢ | fᵢ) of each example, where f ~ N(mean, covariance).

        In closed form for Gaussian noise, for classes by :meth:`probit`; otherwise by nodes, as :meth:`moments`.
        """
        nodes = Nodes.standard(mean.shape[1])
        logs = [self.log_prob(f, y) for f in nodes.at(mean, covariance)]
        return torch.logsumexp(torch.stack(logs) + nodes.weights.to(mean).log().unsqueeze(1), 0)

    def probabilities(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """p(y = k | f) of each class k, or of each label.

        Raises:
            InvalidOption: the likelihood has no classes.
        """
        raise self._lacks("probabilities(f)", "gives the probability of each class, (n, c)")

    def probit(self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c"]:
        """E p(y = k | f) where f ~ N(mean, covariance), as if the logistic function were a probit: in closed form.

        Args:
            mean: of f at m examples.
            covariance: of the outputs of each example.

        Raises:
            InvalidData: a difference of outputs with a negative variance.
            InvalidOption: the likelihood has no classes.
        """
        raise self._lacks("probit(mean, covariance)", "approximates the expected probability of each class, (m, c)")

    def check(self, n: int, c: int) -> None:  # noqa: B027 - most fit any
        """Refuse a number of examples or outputs that it does not fit.

        Raises:
            InvalidOption: says what was expected.
        """

    def targets(self, y: Any, n: int, c: int) -> Shaped[Tensor, "n ..."]:
        """Targets for n examples with c outputs, checked, in the shape that the other methods take: here (n, c).

        Raises:
            InvalidData: no numbers, not finite, or of another shape; (n,) is taken for c = 1.
        """
        return numbers(y, n, c)

    def part(self, start: int, stop: int) -> Likelihood:
        """The likelihood of the examples from ``start`` to ``stop``."""
        return self

    def at(self, index: Int64[Tensor, " m"]) -> Likelihood:
        """The likelihood of the examples with these numbers."""
        return self

    def _lacks(self, method: str, what: str) -> InvalidOption:
        return InvalidOption(
            f"likelihood: {type(self).__name__} has no {method}, which {what}; write this method, or take a likelihood "
            "that has it."
        )


def beside(f: Float[Tensor, "n c"], generator: torch.Generator | None) -> Float64[Tensor, "n c"]:
    """Function values in float64, on the device that the generator draws on."""
    return f.to(torch.float64) if generator is None else f.to(generator.device, torch.float64)


def normal(f: Float[Tensor, "n c"], generator: torch.Generator | None) -> Float64[Tensor, "n c"]:
    """Standard normal numbers, as many as f has."""
    device = f.device if generator is None else generator.device
    return torch.randn(f.shape, generator=generator, device=device, dtype=torch.float64).to(f.device)


def plain(y: Any, expected: str) -> Tensor:
    """Whatever holds real numbers, as a tensor.

    Raises:
        InvalidData: it does not.
    """
    try:
        given = y.detach() if isinstance(y, Tensor) else torch.as_tensor(np.array(y))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidData(f"y: got {type(y).__name__} that holds no plain numbers; expected {expected}.") from error
    if given.is_complex():
        raise InvalidData(f"y: got complex numbers; expected {expected}, real.")
    return given


def numbers(y: Any, n: int, c: int) -> Float[Tensor, "n c"]:
    """Targets as float64, (n, c).

    Raises:
        InvalidData: as :meth:`Likelihood.targets`.
    """
    given = plain(y, f"({n}, {c})")
    values = given.to(torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise InvalidData("y: got NaN or infinite entries; expected finite numbers.")
    values = values.unsqueeze(1) if values.ndim == 1 else values
    if tuple(values.shape) != (n, c):
        raise InvalidData(
            f"y: got shape {tuple(given.shape)}; expected ({n}, {c})" + (f" or ({n},)." if c == 1 else ".")
        )
    return values
