"""The Bernoulli likelihood: yes or no, for each output apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import logsigmoid

from jacana.errors import InvalidData
from jacana.likelihoods.likelihood import Likelihood, beside, numbers

__all__ = ["Bernoulli"]


@final
@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """p(y = 1 | f) = 1 / (1 + exp(−f)): one logit for two classes, or c logits for c labels that do not exclude others.

        ∇ log p = y − π,     H = diag(π (1 − π)),     π = sigmoid(f)

    The probability of a label where f ~ N(m, v) is approximately sigmoid(m / √(1 + π v / 8)), right to 0.02.

    References:
        MacKay 1992, The evidence framework applied to classification networks, section 4, for the approximation.

    Example:
        >>> import jacana, torch
        >>> likelihood = jacana.Bernoulli()
        >>> f = torch.tensor([[0.0], [2.0]])
        >>> likelihood.log_prob(f, likelihood.targets([0, 1], 2, 1))
        tensor([-0.6931, -0.1269])
    """

    def log_prob(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return logsigmoid((2.0 * y.to(f) - 1.0) * f).sum(1)

    def gradient(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        y = y.to(f)
        return y * (-f).sigmoid() - (1.0 - y) * f.sigmoid()  # y − π, with all its digits where π is almost y

    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed(f.sigmoid() * (-f).sigmoid())

    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        return (f.sigmoid() * (-f).sigmoid()).to(v).unsqueeze(2) * v

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed((f.sigmoid() * (-f).sigmoid()).sqrt())

    def saturated(self, y: Float[Tensor, "n c"]) -> Float64[Tensor, " n"]:
        return torch.zeros(len(y), dtype=torch.float64, device=y.device)

    @property
    def by_output(self) -> bool:
        return True

    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Float64[Tensor, "n c"]:
        return torch.bernoulli(beside(f, generator).sigmoid(), generator=generator).to(f.device)

    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        return f.sigmoid(), f.sigmoid() * (-f).sigmoid()

    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m c"]]:
        return self.conditional_moments(_moderated(mean, covariance))

    def probabilities(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return f.sigmoid()

    def probit(self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c"]:
        return _moderated(mean, covariance).sigmoid()

    def log_expected(
        self, mean: Float[Tensor, "n c"], covariance: Float[Tensor, "n c c"], y: Float[Tensor, "n c"]
    ) -> Float[Tensor, " n"]:
        sign = 2.0 * y.to(mean) - 1.0
        return self.probit(sign * mean, covariance).log().sum(1)

    def targets(self, y: Any, n: int, c: int) -> Float[Tensor, "n c"]:
        """Zeros and ones, (n, c).

        Raises:
            InvalidData: anything else.
        """
        values = numbers(y, n, c)
        if not bool(((values == 0.0) | (values == 1.0)).all()):
            raise InvalidData("y: got values other than 0 and 1; expected those. Encode the labels first.")
        return values


def _moderated(mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c"]:
    """κ(v) m, MacKay's κ(v) = 1 / √(1 + π v / 8)."""
    return mean / (1.0 + math.pi / 8.0 * covariance.diagonal(dim1=1, dim2=2)).sqrt()
