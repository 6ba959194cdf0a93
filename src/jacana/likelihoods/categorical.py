"""The categorical likelihood: one of c classes, with softmax probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption
from jacana.likelihoods.likelihood import Likelihood, plain

__all__ = ["Categorical"]


@final
@dataclass(frozen=True)
class Categorical(Likelihood):
    """p(y = k | f) = exp(f_k) / Σ_l exp(f_l), for c ≥ 2 logits and labels 0, …, c − 1.

        ∇ log p = e_y − π,     H = diag(π) − π πᵀ,     π = softmax(f)

    H does not depend on y: the curvature is also the expected one.

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

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        pi = f.softmax(1)
        root = pi.sqrt()
        full = -pi.unsqueeze(2) * root.unsqueeze(1)
        full.diagonal(dim1=1, dim2=2).copy_(root * _others(pi))
        return full

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
