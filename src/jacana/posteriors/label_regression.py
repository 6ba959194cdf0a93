"""Label regression: what methods have in common that regress on numbers that stand for class labels."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Categorical, Gaussian, Likelihood, unscaled, weights_of
from jacana.networks import Source
from jacana.posteriors.choice import choose
from jacana.posteriors.method import Method, State
from jacana.posteriors.nonlinear import Nonlinear
from jacana.posteriors.observations import Observations

__all__ = ["LabelRegression", "counted"]


class LabelRegression(Method):
    """Regression with Gaussian noise on targets that are made of labels: the posterior has a closed form.

    A subclass says what the targets are, in :meth:`regression`; probabilities are averages of softmax(f).

    Attributes:
        method: how the regression is computed; None for the cheapest.
    """

    exact: ClassVar[bool] = False

    method: Method | None

    @abstractmethod
    def regression(self, observations: Observations, *, progress: bool) -> Observations:
        """The labels as Gaussian observations of f."""

    @property
    def streams(self) -> bool:
        return self.method is not None and self.method.streams

    def check(self, likelihood: Likelihood) -> None:
        """Refuse what has no classes.

        Raises:
            InvalidOption: any likelihood but :class:`Categorical`, weighted or not.
        """
        base = unscaled(likelihood)
        if not isinstance(base, Categorical):
            raise InvalidOption(
                f"method: {type(self).__name__} is for class labels, likelihood=jacana.Categorical(), and the "
                f"likelihood is {type(base).__name__}; take jacana.Laplace(), or for Gaussian noise "
                "jacana.FunctionSpace() or jacana.WeightSpace()."
            )

    def check_method(self) -> None:
        """Refuse what cannot compute the regression.

        Raises:
            InvalidOption: no method, or none for Gaussian noise.
        """
        if self.method is None:
            return
        if not isinstance(self.method, Method) or isinstance(self.method, LabelRegression | Nonlinear):
            raise InvalidOption(
                f"method: got {self.method!r}; expected one for Gaussian noise, like jacana.FunctionSpace(), or None."
            )
        self.method.check(Gaussian(1.0))

    def regressed(self, observations: Observations, *, progress: bool) -> State:
        """The posterior of the regression."""
        inner = self.regression(observations, progress=progress)
        method = choose(inner).method if self.method is None else self.method
        return method.condition(inner, progress=progress)


def counted(observations: Observations) -> tuple[Observations, Float64[Tensor, " n"]]:
    """The labels that count, and how much: those of weight zero are left out, and copies in memory are put together."""
    if not isinstance(observations.x, Source):
        observations = observations.distinct()
    weights = weights_of(observations.likelihood, observations.n)
    if bool((weights == 0.0).any()):
        some = weights.nonzero().flatten()
        observations, weights = observations.some(some, observations.x.some(some)), weights[some]
    return observations, weights.to(observations.offset.device)
