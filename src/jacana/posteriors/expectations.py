"""Expectations: of log p(y | f), its gradient and its curvature, where the values of f are Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, NotPositiveDefinite
from jacana.likelihoods import Nodes
from jacana.posteriors.joseph import EPS, TRUSTED
from jacana.posteriors.observations import Observations

__all__ = ["Expectations", "Expected", "root_of"]

_ALONE, _PAIR, _SOBOL = 256, (96, 12), 256
_ENOUGH = 4  # Sobol points a dimension, so that squares are integrated exactly
_NUMBERS = 2**20  # held at once: 8 MiB
_ROUNDING = 64.0 * EPS


@final
@dataclass(frozen=True)
class Expected:
    """What n examples say under Gaussian function values.

    Attributes:
        log_prob: Σ_i E log p(y_i | f_i).
        gradient: E ∂ log p / ∂f_i.
        curvature: E H_i.
    """

    log_prob: float
    gradient: Float64[Tensor, "n c"]
    curvature: Float64[Tensor, "n c c"]


@final
class Expectations:
    """E over f_i ~ N(f̄_i, V_i) of each example, as sums over nodes that never change: functions without noise.

        E g(f) ≈ Σ_q w_q g(f̄_i + R_i z_q),     R_i R_iᵀ = V_i

    One output, or outputs that are observed apart, each by itself: the trapezoidal rule on 256 nodes, which for a logit
    of standard deviation 10 is right to 1e-12 (Gauss and Hermite's 64 nodes to 1e-2). Two outputs: 96 such nodes along
    their difference, by 12 of Gauss and Hermite's. More: 256 Sobol points. All integrate squares exactly. R is
    continuous in V and the same from wherever V came, as the eigenvectors are not.

    Args:
        data: n examples.
        prior: the largest variance that each has before any data, of which V is what is left. An eigenvalue of V that
            is negative by no more than 1e4 eps of it is rounding, and taken for zero.
    """

    def __init__(self, data: Observations, prior: Float64[Tensor, " n"]) -> None:
        n, c = data.n, data.c
        apart = c > 1 and data.likelihood.by_output
        self._likelihood, self._apart = data.likelihood, apart
        self._targets = data.targets.reshape(n * c, 1) if apart else data.targets
        self._index = torch.arange(n, device=data.offset.device).repeat_interleave(c if apart else 1)
        self._prior = prior.repeat_interleave(c if apart else 1)
        nodes = _nodes(1 if apart else c)
        self._nodes, self._weights = nodes.nodes.to(data.offset.device), nodes.weights.to(data.offset.device)

    def at(self, mean: Float64[Tensor, "n c"], covariance: Float64[Tensor, "n c c"]) -> Expected:
        """The expectations under N(mean, covariance).

        Raises:
            NotPositiveDefinite: a covariance with a negative eigenvalue beyond the rounding of the prior.
        """
        n, c = mean.shape
        if not self._apart:
            return self._rows(mean, covariance)
        found = self._rows(mean.reshape(n * c, 1), covariance.diagonal(dim1=1, dim2=2).reshape(n * c, 1, 1))
        return Expected(found.log_prob, found.gradient.view(n, c), torch.diag_embed(found.curvature.view(n, c)))

    def _rows(self, mean: Float64[Tensor, "m d"], covariance: Float64[Tensor, "m d d"]) -> Expected:
        m, d = mean.shape
        root = self._root(covariance)
        log_prob, gradient, curvature = 0.0, torch.zeros_like(mean), torch.zeros_like(covariance)
        chunk = max(1, _NUMBERS // (m * d * d))
        for nodes, weights in zip(torch.split(self._nodes, chunk), torch.split(self._weights, chunk), strict=True):
            q = len(nodes)
            f = (mean + torch.einsum("mde,qe->qmd", root, nodes)).flatten(0, 1)
            likelihood = self._likelihood.at(self._index.repeat(q))  # weights and noise of examples go with their rows
            y = self._targets.repeat(q, *(1 for _ in self._targets.shape[1:]))
            log_prob += float(weights @ likelihood.log_prob(f, y).to(f).view(q, m).sum(1))
            gradient += torch.tensordot(weights, likelihood.gradient(f, y).to(f).view(q, m, d), 1)
            curvature += torch.tensordot(weights, likelihood.curvature(f).to(f).reshape(q, m, d, d), 1)
        return Expected(log_prob, gradient, curvature)

    def _root(self, covariance: Float64[Tensor, "m d d"]) -> Float64[Tensor, "m d d"]:
        """R, with what is negative by the prior's rounding alone as zero."""
        values, vectors = _spectrum(covariance)
        if bool((values < -(TRUSTED * EPS * self._prior.unsqueeze(1))).any()):
            worst = int((values.amin(1) / self._prior).argmin())
            raise NotPositiveDefinite(
                f"the covariance of the function values at example {worst} has the eigenvalue "
                f"{float(values[worst].min()):.3g}, left of a prior variance of {float(self._prior[worst]):.3g}: "
                "float64 has not enough digits for both. Take a smaller prior_std, or method=jacana.WeightSpace()."
            )
        if covariance.shape[1] == 2:
            return _by_difference(covariance)
        return (vectors * values.clamp(min=0.0).sqrt().unsqueeze(1)) @ vectors.mT


def _by_difference(covariance: Float64[Tensor, "m 2 2"]) -> Float64[Tensor, "m 2 2"]:
    """R of which the first column alone moves f₁ − f₂: all that softmax and like functions see."""
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64, device=covariance.device) * 0.5**0.5
    turned = turn @ covariance @ turn.T
    difference = turned[:, 0, 0].clamp(min=0.0).sqrt()
    along = torch.where(difference > 0.0, turned[:, 0, 1] / difference, 0.0)
    rest = (turned[:, 1, 1] - along.square()).clamp(min=0.0).sqrt()
    lower = torch.stack([torch.stack([difference, 0.0 * rest], 1), torch.stack([along, rest], 1)], 1)
    return turn.T @ lower


def root_of(curvature: Float64[Tensor, "n c c"]) -> Float64[Tensor, "n c r"]:
    """R with R Rᵀ = H, without the columns that are zero for every example, up to rounding.

    Raises:
        InvalidOption: a curvature that is not positive semidefinite.
    """
    values, vectors = _spectrum(curvature)
    rounding = curvature.shape[1] * _ROUNDING * values.abs().amax(1, keepdim=True)
    if bool((values < -rounding).any()):
        raise InvalidOption(
            f"likelihood: its expected curvature has a negative eigenvalue, {float(values.min())}; Variational needs "
            "one that has none: the expected curvature E_y[−∇² log p(y | f)]."
        )
    first = int((values > rounding).any(0).to(torch.int8).argmax())  # eigenvalues ascend
    return vectors[:, :, first:] * values[:, first:].clamp(min=0.0).sqrt().unsqueeze(1)


def _spectrum(blocks: Float64[Tensor, "n c c"]) -> tuple[Float64[Tensor, "n c"], Float64[Tensor, "n c c"]]:
    if blocks.shape[1] == 1:
        return blocks[:, 0], torch.ones_like(blocks)
    values, vectors = torch.linalg.eigh(blocks)
    return values, vectors


def _nodes(c: int) -> Nodes:
    if c == 1:
        return Nodes.trapezoidal(_ALONE)
    if c == 2:
        one, two = Nodes.trapezoidal(_PAIR[0]), Nodes.standard(1, _PAIR[1])
        plane = torch.cartesian_prod(one.nodes.squeeze(1), two.nodes.squeeze(1))
        return Nodes(plane, torch.outer(one.weights, two.weights).flatten())
    return Nodes.standard(c, max(_SOBOL, 1 << (_ENOUGH * c - 1).bit_length()))
