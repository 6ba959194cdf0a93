"""Tempered: another likelihood, each observation worth several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods.likelihood import Likelihood
from jacana.likelihoods.scaled import Scaled

__all__ = ["Tempered"]


@final
@dataclass(frozen=True)
class Tempered(Scaled):
    """w log p(y | f): each observation counts as w that agree.

        ∇ log p ← w ∇ log p,     H ← w H

    A label that somebody looked at twice is surer than a softmax believes, which takes every label for one throw of a
    die. Where labels are clean, w above one lets a posterior be as sure as they are; it is learned by
    :func:`maximize_leave_one_out`. It is for learning alone: samples, moments and probabilities of new observations are
    those of the likelihood itself.

    Args:
        likelihood: p(y | f).
        power: w, positive.

    Raises:
        InvalidOption: another power; no likelihood.

    References:
        Kapoor, Maddox, Izmailov, Wilson 2022, On uncertainty, tempering, and data augmentation in Bayesian
        classification (arXiv 2203.16481), section 4.

    Example:
        >>> import jacana, torch
        >>> likelihood = jacana.Tempered(jacana.Categorical(), 2.0)
        >>> likelihood.log_prob(torch.zeros(1, 2), torch.tensor([0]))
        tensor([-1.3863])
    """

    likelihood: Likelihood
    power: float | int

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Likelihood):
            raise InvalidOption(f"likelihood: got {self.likelihood!r}; expected one, e.g. jacana.Categorical().")
        if isinstance(self.power, bool) or not isinstance(self.power, int | float) or not 0.0 < self.power < math.inf:
            raise InvalidOption(f"power: got {self.power!r}; expected a positive number, one for none.")

    def scale(self, values: Float[Tensor, "n ..."], *, root: bool = False) -> Float[Tensor, "n ..."]:
        return (math.sqrt(self.power) if root else self.power) * values

    def part(self, start: int, stop: int) -> Tempered:
        return Tempered(self.likelihood.part(start, stop), self.power)

    def at(self, index: Int64[Tensor, " m"]) -> Tempered:
        return Tempered(self.likelihood.at(index), self.power)
