"""Nonlinear: methods whose mean is what the network itself says at other weights, with the uncertainty of a tangent."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, final

from jacana.likelihoods import Likelihood
from jacana.posteriors.at_mode import AtMode
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.posteriors.relinearize import check_start
from jacana.posteriors.side_choice import chosen, side_of
from jacana.posteriors.sides import Side

__all__ = ["Nonlinear"]


class Nonlinear(Method):
    """From the network's tangent at the weights that it was given with to other weights.

    Attributes:
        method: whose uncertainty there is, with the side on which it is computed.
    """

    exact: ClassVar[bool] = False

    method: AtMode

    @abstractmethod
    def by(self, method: AtMode) -> Nonlinear:
        """The same with another ``method``."""

    @property
    @final
    def streams(self) -> bool:
        return self.method.streams

    @final
    def check(self, likelihood: Likelihood) -> None:
        self.method.check(likelihood)

    def condition(self, observations: Observations, *, progress: bool) -> State:
        check_start(observations.model)
        return self.after(side_of(observations, self.side(observations), progress=progress), progress=progress)

    @abstractmethod
    def after(self, side: Side, *, progress: bool) -> State:
        """The posterior, where the side of the first tangent is there."""

    @final
    def side(self, observations: Observations) -> Method:
        """Where the algebra is done."""
        return chosen(observations) if self.method.method is None else self.method.method
