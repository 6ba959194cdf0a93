"""The heteroscedastic Gaussian likelihood: the network gives the mean and the logarithm of the variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods.likelihood import Likelihood, normal, numbers

__all__ = ["HeteroscedasticGaussian"]


@final
@dataclass(frozen=True)
class HeteroscedasticGaussian(Likelihood):
    """y ~ N(μ, exp(η)) for f = (μ, η): the first half of the outputs are means, the second log variances.

        ∇ log p = ((y − μ) e^−η, ½ ((y − μ)² e^−η − 1)),     H = diag(e^−η, ½)

    H is the expected curvature (the Fisher information). The plain one is
    indefinite where the residual is large.

    References:
        Le, Smola, Canu 2005, Heteroscedastic Gaussian process regression, in another parametrisation.

    Example:
        >>> import jacana, torch
        >>> likelihood = jacana.HeteroscedasticGaussian()
        >>> f = torch.tensor([[1.0, 0.0]])
        >>> likelihood.log_prob(f, torch.tensor([[1.0]])), likelihood.curvature(f)
        (tensor([-0.9189]), tensor([[[1.0000, 0.0000],
                 [0.0000, 0.5000]]]))
    """

    def log_prob(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        mean, log_variance = f.chunk(2, 1)
        squares = (y.to(f) - mean).square() * (-log_variance).exp()
        return -0.5 * (squares + log_variance + math.log(2.0 * math.pi)).sum(1)

    def gradient(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        mean, log_variance = f.chunk(2, 1)
        residual, precision = y.to(f) - mean, (-log_variance).exp()
        return torch.cat([residual * precision, 0.5 * (residual.square() * precision - 1.0)], 1)

    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed(_diagonal(f))

    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        return _diagonal(f).to(v).unsqueeze(2) * v

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed(_diagonal(f).sqrt())

    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Float64[Tensor, "n d"]:
        mean, log_variance = f.to(torch.float64).chunk(2, 1)
        return mean + (0.5 * log_variance).exp() * normal(mean, generator)

    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        mean, log_variance = f.chunk(2, 1)
        return mean, log_variance.exp()

    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
        expectation, log_variance = mean.chunk(2, 1)
        between, of_log = covariance.diagonal(dim1=1, dim2=2).chunk(2, 1)
        return expectation, between + (log_variance + 0.5 * of_log).exp()

    def check(self, n: int, c: int) -> None:
        if c % 2:
            raise InvalidOption(
                f"likelihood: HeteroscedasticGaussian needs a mean and a log variance for each target, got {c} outputs."
            )

    def targets(self, y: Any, n: int, c: int) -> Float[Tensor, "n d"]:
        """Targets, (n, c / 2), or (n,) for two outputs."""
        return numbers(y, n, c // 2)


def _diagonal(f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    log_variance = f.chunk(2, 1)[1]
    return torch.cat([(-log_variance).exp(), torch.full_like(log_variance, 0.5)], 1)
