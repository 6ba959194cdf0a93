"""Scaled: what likelihoods have in common that count the observations of another more or less than once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from jacana.likelihoods.likelihood import Likelihood

__all__ = ["Scaled", "layers", "sharpness_of", "unscaled", "weights_of"]


class Scaled(Likelihood):
    """w log p(y | f): gradients and curvatures are w times those of p.

    What is said of new observations is what the likelihood itself says, of τ f.

    Attributes:
        likelihood: p(y | f).
        sharpness: τ, one where a subclass has no other.
    """

    likelihood: Likelihood
    sharpness: float | int = 1.0

    @abstractmethod
    def scale(self, values: Float[Tensor, "n ..."], *, root: bool = False) -> Float[Tensor, "n ..."]:
        """What belongs to each example, times w or its root."""

    @final
    def log_prob(self, f: Float[Tensor, "n c"], y: Shaped[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.scale(self.likelihood.log_prob(f, y))

    @final
    def gradient(self, f: Float[Tensor, "n c"], y: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.scale(self.likelihood.gradient(f, y))

    @final
    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return self.scale(self.likelihood.curvature(f))

    @final
    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        return self.scale(self.likelihood.curvature_times(f, v))

    @final
    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c r"]:
        return self.scale(self.likelihood.curvature_root(f), root=True)

    @final
    def saturated(self, y: Shaped[Tensor, "n ..."]) -> Float64[Tensor, " n"]:
        return self.scale(self.likelihood.saturated(y))

    @property
    @final
    def by_output(self) -> bool:
        return self.likelihood.by_output

    @final
    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        return self.likelihood.conditional_moments(self.sharpness * f)

    @final
    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
        return self.likelihood.moments(self.sharpness * mean, self.sharpness**2 * covariance)

    def log_expected(
        self, mean: Float[Tensor, "n c"], covariance: Float[Tensor, "n c c"], y: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, " n"]:
        """Without w: it is for observations that were not learned from."""
        return self.likelihood.log_expected(self.sharpness * mean, self.sharpness**2 * covariance, y)

    @final
    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Shaped[Tensor, "n ..."]:
        return self.likelihood.sample(self.sharpness * f, generator)

    @final
    def probabilities(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return self.likelihood.probabilities(self.sharpness * f)

    @final
    def probit(self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c"]:
        return self.likelihood.probit(self.sharpness * mean, self.sharpness**2 * covariance)

    def check(self, n: int, c: int) -> None:
        self.likelihood.check(n, c)

    @final
    def targets(self, y: Any, n: int, c: int) -> Shaped[Tensor, "n ..."]:
        return self.likelihood.targets(y, n, c)


def layers(likelihood: Likelihood) -> Iterator[Likelihood]:
    """What scales, from outside to inside, and at last what is scaled."""
    yield likelihood
    while isinstance(likelihood, Scaled):
        likelihood = likelihood.likelihood
        yield likelihood


def unscaled(likelihood: Likelihood) -> Likelihood:
    """What is scaled, if anything is."""
    *_, base = layers(likelihood)
    return base


def sharpness_of(likelihood: Likelihood) -> float:
    """τ of all that scales together."""
    return math.prod((float(one.sharpness) for one in layers(likelihood) if isinstance(one, Scaled)), start=1.0)


def weights_of(likelihood: Likelihood, n: int) -> Float64[Tensor, " n"]:
    """How much each of n examples counts, by all that scales together."""
    weights = torch.ones(n, dtype=torch.float64)
    for one in layers(likelihood):
        weights = one.scale(weights) if isinstance(one, Scaled) else weights
    return weights
