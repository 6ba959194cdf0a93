"""Delegated: a posterior that is read off another one."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.method import State
from jacana.posteriors.observations import Observations
from jacana.solvers import Solution

__all__ = ["Delegated"]


class Delegated(State):
    """What another state says of f, for observations that it was not given as they are.

    Args:
        observations: as they are.
        inner: the other.
    """

    def __init__(self, observations: Observations, inner: State) -> None:
        super().__init__(observations)
        self.inner = inner

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return self.inner.weights

    @property
    def log_evidence(self) -> float:
        return self.inner.log_evidence

    @property
    def evidence(self) -> Estimate:
        return self.inner.evidence

    @property
    def solution(self) -> Solution | None:
        return self.inner.solution

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self.inner.variance(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self.inner.covariance(x)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        return self.inner.blocks(x)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        return self.inner.sample_weights(n, generator)
