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
from jacana.likelihoods import Gaussian, Likelihood
from jacana.operators import standard_normal
from jacana.predictive import Predictive, Probit, entropy, mutual_information

__all__ = ["Prediction", "Source"]


class Source(ABC):
    """Where a prediction gets its numbers: the latent f at m examples with c outputs, and how y comes from it."""

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
    def blocks(self) -> Float64[Tensor, "m c c"]:
        """The covariance of the outputs of each example."""

    @property
    @abstractmethod
    def likelihood(self) -> Likelihood | None:
        """p(y | f), where there is one."""


@final
class Prediction:
    """Mean, variance, covariance and samples of the latent f, or of observations where ``observed``.

    Everything is float64 and shaped (m, c), or (m,) where the targets were (n,). The mean costs one Jacobian-vector
    product; variances and covariances are computed when first asked for, and kept. Where y are labels, f are logits:
    :meth:`probabilities` averages over them, and is also the mean of what is ``observed``.

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
        return self._shaped(self._moments[0] if self._averaged else self._latent)

    @cached_property
    def variance(self) -> Float64[Tensor, "m"] | Float64[Tensor, "m c"]:
        """The variance; with the noise where ``observed``."""
        if self._averaged:
            return self._shaped(self._moments[1])
        variance = self._source.variance()
        return self._shaped(variance + self._noise if self.observed else variance)

    @cached_property
    def std(self) -> Float64[Tensor, "m"] | Float64[Tensor, "m c"]:
        """The standard deviation."""
        return self.variance.sqrt()

    @cached_property
    def covariance(self) -> Float64[Tensor, "mc mc"]:
        """The joint covariance; row i·c + k is output k of example i."""
        if self._averaged:
            raise InvalidOption(
                "observed: got True, and a joint covariance of what is no Gaussian says little; take .sample(), or the "
                "latent .covariance of predict(x)."
            )
        covariance = self._source.covariance()
        return covariance + torch.diag(self._noise.flatten()) if self.observed else covariance

    @cached_property
    def marginal_covariance(self) -> Float64[Tensor, "m c c"]:
        """The covariance of the latent outputs of each example, without those between examples."""
        return self._source.blocks()

    def probabilities(self, predictive: Predictive | None = None) -> Float64[Tensor, "m c"]:
        """The probability of each class, or of each label, averaged over the latent f.

        Args:
            predictive: how: :class:`Probit` (the default), :class:`MonteCarlo` or :class:`LaplaceBridge`.

        Raises:
            InvalidOption: a likelihood without classes, or no way to average.

        Example:
            >>> import jacana, torch
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
            >>> x, labels = torch.randn(9, 2), torch.arange(9) % 3
            >>> post = jacana.TangentGP(net).condition(x, labels, likelihood=jacana.Categorical())
            >>> post.predict(x).probabilities().sum(1).allclose(torch.ones(9, dtype=torch.float64))
            True
        """
        if predictive is not None and not isinstance(predictive, Predictive):
            raise InvalidOption(f"predictive: got {predictive!r}; expected an object like jacana.Probit().")
        way = Probit() if predictive is None else predictive
        return way.probabilities(self._likelihood, self._latent, self.marginal_covariance)

    def entropy(self, predictive: Predictive | None = None) -> Float64[Tensor, " m"]:
        """The entropy of the averaged probabilities in nats: all uncertainty, of the labels and of the model."""
        p = self.probabilities(predictive)
        return entropy(p) + entropy(1.0 - p) if self._likelihood.by_output else entropy(p)

    def mutual_information(self) -> Float64[Tensor, " m"]:
        """Of the label and the model, in nats: how much of the entropy more labels would take away.

        References:
            Houlsby, Huszár, Ghahramani, Lengyel 2011 (arXiv 1112.5745), equation 2.
        """
        return mutual_information(self._likelihood, self._latent, self.marginal_covariance)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The central interval that holds each value with probability ``level``.

        Raises:
            InvalidOption: a level outside (0, 1); observations that are not Gaussian.
        """
        if self._averaged:
            raise InvalidOption("observed: got True, and the interval of what is no Gaussian is not ±; take .sample().")
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
        if self._averaged:
            return torch.stack([self._shaped(self._likelihood.sample(f, generator)) for f in samples])
        if self.observed:
            noise = standard_normal(*samples.shape, generator=generator, device=samples.device)
            samples = samples + noise * self._noise.sqrt()
        return samples.squeeze(2) if self._flat else samples

    @cached_property
    def _latent(self) -> Float64[Tensor, "m c"]:
        return self._source.mean()

    @property
    def _likelihood(self) -> Likelihood:
        if self._source.likelihood is None:
            raise InvalidOption("predict: this is the prior, which has no likelihood; condition it on data first.")
        return self._source.likelihood

    @property
    def _averaged(self) -> bool:
        """Whether what is shown is y, and y is more than f and noise."""
        return self.observed and not isinstance(self._likelihood, Gaussian)

    @cached_property
    def _moments(self) -> tuple[Float64[Tensor, "m d"], Float64[Tensor, "m d"]]:
        return self._likelihood.moments(self._latent, self.marginal_covariance)

    @property
    def _noise(self) -> Float64[Tensor, "m c"]:
        """The variance of y − f."""
        likelihood = self._likelihood
        if not isinstance(likelihood, Gaussian):
            raise InvalidOption(f"likelihood: {type(likelihood).__name__} has no variance of y − f.")
        return likelihood.variances(len(self._latent), self._latent.shape[1], self._latent.device)

    def _shaped(self, values: Tensor) -> Tensor:
        return values.squeeze(1) if self._flat and values.ndim == 2 else values

    def __repr__(self) -> str:
        return f"Prediction(mean of shape {tuple(self.mean.shape)}, {'observed' if self.observed else 'latent'})"
