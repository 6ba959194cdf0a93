"""Tempered: another likelihood, each observation worth several, and new ones told as surely as they should be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import final

from jaxtyping import Float, Int64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods.bernoulli import Bernoulli
from jacana.likelihoods.categorical import Categorical
from jacana.likelihoods.likelihood import Likelihood
from jacana.likelihoods.scaled import Scaled, unscaled

__all__ = ["Tempered"]


@final
@dataclass(frozen=True)
class Tempered(Scaled):
    """w log p(y | f) for what is learned from: each observation counts as w that agree. For what is new, p(y | τ f).

        ∇ log p ← w ∇ log p,     H ← w H

    A label that somebody looked at twice is surer than a softmax believes, which takes every label for one throw of a
    die. Where labels are clean, w above one lets a posterior be as sure as they are. It is for learning alone; samples,
    moments and probabilities of new observations are those of the likelihood at τ f. A τ other than one is the inverse
    temperature of ordinary calibration: a mode that is smooth enough to be right need not be as far from zero as it is
    sure. Both are learned by :func:`maximize_leave_one_out`.

    Args:
        likelihood: p(y | f).
        power: w, positive.
        sharpness: τ, positive, for :class:`Categorical` and :class:`Bernoulli`.

    Raises:
        InvalidOption: another power or sharpness; no likelihood, or none of classes for a sharpness.

    References:
        Kapoor, Maddox, Izmailov, Wilson 2022, On uncertainty, tempering, and data augmentation in Bayesian
        classification (arXiv 2203.16481), section 4. Guo, Pleiss, Sun, Weinberger 2017, On calibration of modern neural
        networks (arXiv 1706.04599), section 4.2.

    Example:
        >>> import jacana, torch
        >>> likelihood = jacana.Tempered(jacana.Categorical(), 2.0)
        >>> likelihood.log_prob(torch.zeros(1, 2), torch.tensor([0]))
        tensor([-1.3863])
    """

    likelihood: Likelihood
    power: float | int
    sharpness: float | int = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Likelihood):
            raise InvalidOption(f"likelihood: got {self.likelihood!r}; expected one, e.g. jacana.Categorical().")
        for name, value in (("power", self.power), ("sharpness", self.sharpness)):
            if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < math.inf:
                raise InvalidOption(f"{name}: got {value!r}; expected a positive number, one for none.")
        if self.sharpness != 1.0 and not isinstance(unscaled(self.likelihood), Categorical | Bernoulli):
            raise InvalidOption(
                f"sharpness: got {self.sharpness!r} for {type(unscaled(self.likelihood)).__name__}; it is for classes, "
                "jacana.Categorical() or jacana.Bernoulli(): leave it out."
            )

    def scale(self, values: Float[Tensor, "n ..."], *, root: bool = False) -> Float[Tensor, "n ..."]:
        return (math.sqrt(self.power) if root else self.power) * values

    def part(self, start: int, stop: int) -> Tempered:
        return replace(self, likelihood=self.likelihood.part(start, stop))

    def at(self, index: Int64[Tensor, " m"]) -> Tempered:
        return replace(self, likelihood=self.likelihood.at(index))
