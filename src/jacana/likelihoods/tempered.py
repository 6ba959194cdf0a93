"""Tempered: another likelihood, each observation worth several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods.likelihood import Likelihood

__all__ = ["Tempered"]


@final
@dataclass(frozen=True)
class Tempered(Likelihood):
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

    def log_prob(self, f: Float[Tensor, "n c"], y: Shaped[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.power * self.likelihood.log_prob(f, y)

    def gradient(self, f: Float[Tensor, "n c"], y: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.power * self.likelihood.gradient(f, y)

    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return self.power * self.likelihood.curvature(f)

    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        return self.power * self.likelihood.curvature_times(f, v)

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c r"]:
        return math.sqrt(self.power) * self.likelihood.curvature_root(f)

    @property
    def by_output(self) -> bool:
        return self.likelihood.by_output

    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        return self.likelihood.conditional_moments(f)

    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
        return self.likelihood.moments(mean, covariance)

    def log_expected(
        self, mean: Float[Tensor, "n c"], covariance: Float[Tensor, "n c c"], y: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, " n"]:
        """Of the likelihood itself: it is for observations that were not learned from."""
        return self.likelihood.log_expected(mean, covariance, y)

    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Shaped[Tensor, "n ..."]:
        return self.likelihood.sample(f, generator)

    def probabilities(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return self.likelihood.probabilities(f)

    def probit(self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c"]:
        return self.likelihood.probit(mean, covariance)

    def check(self, n: int, c: int) -> None:
        self.likelihood.check(n, c)

    def targets(self, y: Any, n: int, c: int) -> Shaped[Tensor, "n ..."]:
        return self.likelihood.targets(y, n, c)

    def part(self, start: int, stop: int) -> Tempered:
        return Tempered(self.likelihood.part(start, stop), self.power)

    def at(self, index: Int64[Tensor, " m"]) -> Tempered:
        return Tempered(self.likelihood.at(index), self.power)
