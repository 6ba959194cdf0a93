"""AtMode: methods that find the mode of the linear model first."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, final

from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Likelihood
from jacana.posteriors.method import Method, State
from jacana.posteriors.mode import Mode, mode_of
from jacana.posteriors.observations import Observations
from jacana.posteriors.side_choice import chosen, side_of
from jacana.posteriors.sides import Side

__all__ = ["AtMode", "ModeState"]


@dataclass(frozen=True)
class AtMode(Method):
    """Newton's method on one side of the model, and what is made of where it ends.

    Args:
        method: the side and how it is solved; None for the cheaper one.
    """

    exact: ClassVar[bool] = False

    method: Method | None = None

    def __post_init__(self) -> None:
        if self.method is not None and not isinstance(self.method, Method):
            raise InvalidOption(f"method: got {self.method!r}; expected one like jacana.FunctionSpace(), or None.")

    @property
    @final
    def streams(self) -> bool:
        return self.method is not None and self.method.streams

    @final
    def check(self, likelihood: Likelihood) -> None:
        pass

    @final
    def condition(self, observations: Observations, *, progress: bool) -> State:
        method = chosen(observations) if self.method is None else self.method
        return replace(self, method=method).after(side_of(observations, method, progress=progress), progress=progress)

    @final
    def after(self, side: Side, *, progress: bool) -> State:
        """The posterior, where the side that ``method`` names is there."""
        return self.state(side, mode_of(side), progress=progress)

    @abstractmethod
    def state(self, side: Side, mode: Mode, *, progress: bool) -> State:
        """The posterior, given the mode on a side."""


class ModeState(State):
    """The mode.

    Args:
        options: its method, with the side that was taken.
        side: on which it was found.
        mode: where.
        progress: show bars when more examples come.
    """

    def __init__(self, options: AtMode, side: Side, mode: Mode, *, progress: bool) -> None:
        super().__init__(side.observations)
        self.mode, self._options, self._side, self._progress = mode, options, side, progress

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._side.weights(self.mode.u)

    @final
    def extended(self, more: Observations) -> State:
        return self._options.condition(self.observations.followed_by(more), progress=self._progress)
