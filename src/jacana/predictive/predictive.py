"""Predictive: how class probabilities come from a Gaussian latent."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidData
from jacana.likelihoods import Likelihood
from jacana.likelihoods.nodes import ROUNDING

__all__ = ["Predictive", "checked"]


class Predictive(ABC):
    """E p(y = k | f) over f ~ N(m, V), for each example.

    A new one is a subclass with :meth:`probabilities`.

    Example:
        >>> import jacana, torch
        >>> from jacana.predictive import Predictive
        >>> class PlugIn(Predictive):
        ...     def probabilities(self, likelihood, mean, covariance):
        ...         return likelihood.probabilities(mean)
        >>> mean, covariance = torch.tensor([[0.0, 2.0]]).double(), torch.eye(2).unsqueeze(0).double()
        >>> PlugIn().probabilities(jacana.Categorical(), mean, covariance)
        tensor([[0.1192, 0.8808]], dtype=torch.float64)
    """

    @abstractmethod
    def probabilities(
        self, likelihood: Likelihood, mean: Float64[Tensor, "m c"], covariance: Float64[Tensor, "m c c"]
    ) -> Float64[Tensor, "m c"]:
        """The probability of each class, or of each label.

        Args:
            likelihood: of classes.
            mean: of the latent at m examples.
            covariance: of the c outputs of each.

        Raises:
            InvalidData: a mean or a covariance that is none.
            InvalidOption: a likelihood without classes.
        """


def checked(
    mean: Float64[Tensor, "m c"], covariance: Float64[Tensor, "m c c"]
) -> tuple[Float64[Tensor, "m c"], Float64[Tensor, "m c c"]]:
    """The latent, where it is one.

    Raises:
        InvalidData: shapes that do not fit, entries that are not finite, or negative variances.
    """
    if mean.ndim != 2 or covariance.shape != (*mean.shape, mean.shape[1]):
        raise InvalidData(
            f"covariance: got a mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(covariance.shape)}; "
            "expected (m, c) and (m, c, c), the outputs of each example by themselves."
        )
    if not bool(torch.isfinite(mean).all()) or not bool(torch.isfinite(covariance).all()):
        raise InvalidData("mean, covariance: got NaN or infinite entries; expected finite ones.")
    variance = covariance.diagonal(dim1=1, dim2=2)
    rounding = ROUNDING * torch.finfo(covariance.dtype).eps * variance.abs().sum(1, keepdim=True)
    if bool((variance < -rounding).any()):
        raise InvalidData(f"covariance: got a variance of {float(variance.min()):.3g}; expected none below zero.")
    return mean, covariance
