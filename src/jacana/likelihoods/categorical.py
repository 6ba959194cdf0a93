"""The categorical likelihood: one of c classes, with softmax probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods.likelihood import Likelihood, beside, plain
from jacana.likelihoods.nodes import ROUNDING

__all__ = ["Categorical"]


@final
@dataclass(frozen=True)
class Categorical(Likelihood):
    """p(y = k | f) = exp(f_k) / Σ_l exp(f_l), for c ≥ 2 logits and labels 0, …, c − 1.

        ∇ log p = e_y − π,     H = diag(π) − π πᵀ,     π = softmax(f)

    H does not depend on y: the curvature is also the expected one. Where f ~ N(m, V), the probability of class k is
    approximately

        p_k ∝ 1 / Σ_l exp(−(m_k − m_l) / √(1 + π/8 var(f_k − f_l)))

    by which a constant added to all logits, known or not, changes nothing, and two classes are :class:`Bernoulli` on
    their difference.

    References:
        Lu, Ie, Sha 2020, Mean-field approximation to Gaussian-softmax integral with application to uncertainty
        estimation (arXiv 2006.07584), for the approximation, here with the covariance of each pair of logits.

    Example:
        >>> import jacana, torch
        >>> likelihood = jacana.Categorical()
        >>> f = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> likelihood.log_prob(f, torch.tensor([0, 1]))
        tensor([-0.6931, -0.1269])
        >>> likelihood.curvature(f)[0]
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])
    """

    def log_prob(self, f: Float[Tensor, "n c"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        return f.log_softmax(1).gather(1, y.to(f.device).unsqueeze(1)).squeeze(1)

    def gradient(self, f: Float[Tensor, "n c"], y: Int64[Tensor, " n"]) -> Float[Tensor, "n c"]:
        label = y.to(f.device).unsqueeze(1)
        pi = f.softmax(1)
        return (-pi).scatter(1, label, _others(pi).gather(1, label))

    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        pi = f.softmax(1)
        curvature = -pi.unsqueeze(2) * pi.unsqueeze(1)
        curvature.diagonal(dim1=1, dim2=2).copy_(pi * _others(pi))
        return curvature

    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        pi = f.softmax(1).to(v)
        likely = pi.argmax(1).view(-1, 1, 1).expand(-1, 1, v.shape[2])
        beside = v - v.gather(1, likely)  # where one class is almost certain, v less its mean would lose all digits
        pi = pi.unsqueeze(2)
        return pi * (beside - (pi * beside).sum(1, keepdim=True))

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c r"]:
        """R with R Rᵀ = H and c − 1 columns: diag(√π) Q, where (√π, Q) is orthonormal."""
        pi = f.softmax(1)
        root, likely = pi.sqrt(), pi.argmax(1, keepdim=True)
        order = torch.arange(f.shape[1] - 1, device=f.device)
        others = order + (order >= likely).to(order)
        # Householder's reflection of √π to −e_k, k the likely class, less its column k. Its u = √π + e_k and the
        # diagonal 1 − π_j / (1 + √π_k) > 1/2 come without cancellation.
        top, rest = root.gather(1, likely), root.gather(1, others)
        across = (pi / (1.0 + top)).scatter(1, likely, top)
        full = -across.unsqueeze(2) * rest.unsqueeze(1)
        return full.scatter_add_(1, others.unsqueeze(1), rest.unsqueeze(1))

    def saturated(self, y: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        return torch.zeros(len(y), dtype=torch.float64, device=y.device)

    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Int64[Tensor, " n"]:
        return torch.multinomial(beside(f, generator).softmax(1), 1, generator=generator).squeeze(1).to(f.device)

    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        return _of_indicators(f.softmax(1))

    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m c"]]:
        return _of_indicators(self.probit(mean, covariance))

    def probabilities(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return f.softmax(1)

    def probit(self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c"]:
        gaps = mean.unsqueeze(2) - mean.unsqueeze(1)
        moderated = gaps / (1.0 + math.pi / 8.0 * _of_differences(covariance)).sqrt()
        return (-(-moderated).logsumexp(2)).softmax(1)

    def log_expected(
        self, mean: Float[Tensor, "n c"], covariance: Float[Tensor, "n c c"], y: Int64[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        return self.probit(mean, covariance).gather(1, y.to(mean.device).unsqueeze(1)).squeeze(1).log()

    def check(self, n: int, c: int) -> None:
        if c < 2:
            raise InvalidOption(f"likelihood: Categorical needs two outputs or more, got {c}; use Bernoulli() for one.")

    def targets(self, y: Any, n: int, c: int) -> Int64[Tensor, " n"]:
        """Labels as int64, (n,).

        Raises:
            InvalidData: not whole numbers from 0 to c − 1, one for each example.
        """
        given = plain(y, f"({n},) integers")
        if tuple(given.shape) != (n,):
            raise InvalidData(f"y: got shape {tuple(given.shape)}; expected ({n},), a label for each example.")
        labels = given.to(torch.int64)
        if not bool((labels == given).all()):
            raise InvalidData("y: got labels that are no whole numbers; expected integers from 0. Encode them first.")
        if not bool(((labels >= 0) & (labels < c)).all()):
            raise InvalidData(
                f"y: got labels from {int(labels.min())} to {int(labels.max())}; expected 0 to {c - 1} for {c} outputs."
            )
        return labels


def _others(pi: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """1 − π, with all its digits where π is almost one: then it is the sum of the others."""
    likely = pi.argmax(1, keepdim=True)
    return (1.0 - pi).scatter(1, likely, pi.scatter(1, likely, 0.0).sum(1, keepdim=True))


def _of_indicators(p: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Mean and variance of what is one with probability p."""
    return p, p * _others(p)


def _of_differences(covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c c"]:
    """var(f_k − f_l) of all pairs."""
    variance = covariance.diagonal(dim1=1, dim2=2)
    sums = variance.unsqueeze(2) + variance.unsqueeze(1)
    found = sums - covariance - covariance.mT
    rounding = ROUNDING * torch.finfo(covariance.dtype).eps * sums.abs()
    if bool((found < -rounding).any()):
        raise InvalidData(
            f"covariance: got logits of which a difference has the variance {float(found.min()):.3g}; expected a "
            "positive semidefinite covariance for each example."
        )
    return found.clamp(min=0.0)
