"""The Poisson likelihood: counts, with a logarithmic link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from jacana.errors import InvalidData
from jacana.likelihoods.likelihood import Likelihood, beside, numbers

__all__ = ["Poisson"]

_UNCOUNTED = 2.0**53


@final
@dataclass(frozen=True)
class Poisson(Likelihood):
    """p(y | f) = exp(y f − exp(f)) / y!: counts with rate exp(f), for each output apart.

        ∇ log p = y − exp(f),     H = diag(exp(f))

    Example:
        >>> import jacana, torch
        >>> likelihood = jacana.Poisson()
        >>> f = torch.tensor([[0.0], [1.0]])
        >>> likelihood.log_prob(f, likelihood.targets([0, 3], 2, 1))
        tensor([-1.0000, -1.5100])
    """

    def log_prob(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        counts = y.to(f)
        return (counts * f - f.exp() - torch.lgamma(counts + 1.0)).sum(1)

    def gradient(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return y.to(f) - f.exp()

    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed(f.exp())

    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        return f.exp().to(v).unsqueeze(2) * v

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed((0.5 * f).exp())

    def saturated(self, y: Float[Tensor, "n c"]) -> Float64[Tensor, " n"]:
        counts = y.to(torch.float64)
        return (torch.xlogy(counts, counts) - counts - torch.lgamma(counts + 1.0)).sum(1)

    @property
    def by_output(self) -> bool:
        return True

    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Float64[Tensor, "n c"]:
        """Counts, (n, c).

        Raises:
            InvalidData: a rate that is not finite, or beyond what float64 can count.
        """
        rate = beside(f, generator).exp()
        if not bool((rate < _UNCOUNTED).all()):
            raise InvalidData(f"f: got a rate exp(f) up to {float(rate.max()):.3g}; expected below 2^53.")
        return torch.poisson(rate, generator=generator).to(f.device)

    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        return f.exp(), f.exp()

    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m c"]]:
        variance = covariance.diagonal(dim1=1, dim2=2)
        expectation = (mean + 0.5 * variance).exp()  # the rate is log-normal
        return expectation, expectation + variance.expm1() * expectation * expectation

    def targets(self, y: Any, n: int, c: int) -> Float[Tensor, "n c"]:
        """Counts, (n, c).

        Raises:
            InvalidData: negative or not whole.
        """
        values = numbers(y, n, c)
        if not bool(((values >= 0.0) & (values == values.round())).all()):
            raise InvalidData("y: got values that are negative or not whole; expected counts.")
        return values
