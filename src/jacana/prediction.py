"""Prediction: what a Gaussian process says of m examples; computed when it is asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from numbers import Integral, Real
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.operators import standard_normal

__all__ = ["Prediction", "Source"]


class Source(ABC):
    """Where a prediction gets its numbers: the latent f at m examples with c outputs, and the noise on top."""

    @abstractmethod
    def mean(self) -> Float64[Tensor, "m c"]:
        """E f."""

    @abstractmethod
    def variance(self) -> Float64[Tensor, "m c"]:
        """The variance of every f."""

    @abstractmethod
    def covariance(self) -> Float64[Tensor, "mc mc"]:
        """The covariance of all f."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "n m c"]:
        """Joint samples of all f."""

    @abstractmethod
    def noise(self) -> Float64[Tensor, "m c"]:
        """The variance of y − f."""


@final
class Prediction:
    """Mean, variance, covariance and samples of the latent f, or of observations where ``observed``.

    Everything is float64 and shaped (m, c), or (m,) where the targets were (n,). The mean costs one Jacobian-vector
    product; variances and covariances are computed when first asked for, and kept.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(6, 2)
        >>> prediction = jacana.TangentGP(net).condition(x, x.sum(1), noise_std=0.1).predict(x)
        >>> prediction.mean.shape, prediction.covariance.shape, prediction.sample(3).shape
        (torch.Size([6]), torch.Size([6, 6]), torch.Size([3, 6]))
        >>> lower, upper = prediction.interval(0.95)
        >>> bool((lower < prediction.mean).all() and (prediction.mean < upper).all())
        True
    """

    def __init__(self, source: Source, *, flat: bool, observed: bool) -> None:
        self._source = source
        self._flat = flat
        self.observed = observed

    @cached_property
    def mean(self) -> Float64[Tensor, "m"] | Float64[Tensor, "m c"]:
        """The expected value."""
        return self._shaped(self._source.mean())

    @cached_property
    def variance(self) -> Float64[Tensor, "m"] | Float64[Tensor, "m c"]:
        """The variance; with the noise where ``observed``."""
        variance = self._source.variance()
        return self._shaped(variance + self._source.noise() if self.observed else variance)

    @cached_property
    def std(self) -> Float64[Tensor, "m"] | Float64[Tensor, "m c"]:
        """The standard deviation."""
        return self.variance.sqrt()

    @cached_property
    def covariance(self) -> Float64[Tensor, "mc mc"]:
        """The joint covariance; row i·c + k is output k of example i."""
        covariance = self._source.covariance()
        return covariance + torch.diag(self._source.noise().flatten()) if self.observed else covariance

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The central interval that holds each value with probability ``level``.

        Raises:
            InvalidOption: a level outside (0, 1).
        """
        if isinstance(level, bool) or not isinstance(level, Real) or not 0.0 < level < 1.0:
            raise InvalidOption(f"level: got {level!r}; expected a probability between 0 and 1, e.g. 0.95.")
        width = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(float(level), dtype=torch.float64))) * self.std
        return self.mean - width, self.mean + width

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Joint samples over all examples and outputs, (n, m, c) or (n, m).

        Args:
            n: how many.
            generator: the source of randomness; torch's default generator if None.

        Raises:
            InvalidOption: ``n`` not a positive whole number.
        """
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise InvalidOption(f"n: got {n!r}; expected a positive whole number of samples.")
        samples = self._source.sample(int(n), generator)
        if self.observed:
            noise = standard_normal(*samples.shape, generator=generator, device=samples.device)
            samples = samples + noise * self._source.noise().sqrt()
        return samples.squeeze(2) if self._flat else samples

    def _shaped(self, values: Float64[Tensor, "m c"]) -> Tensor:
        return values.squeeze(1) if self._flat else values

    def __repr__(self) -> str:
        return f"Prediction(mean of shape {tuple(self.mean.shape)}, {'observed' if self.observed else 'latent'})"
