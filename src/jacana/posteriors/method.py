"""Method: how a posterior is computed; a new way of inference is one new file with a Method and its State."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Gaussian, Likelihood
from jacana.linearization import Linearization
from jacana.networks import Examples
from jacana.operators import Estimate
from jacana.posteriors.observations import Observations
from jacana.solvers import Solution

__all__ = ["Method", "State"]

_TOGETHER = 16
"""Examples whose joint covariance is computed for the sake of its blocks."""


class State(ABC):
    """A factorised posterior over the weight change δ, with the observations that it came from."""

    def __init__(self, observations: Observations) -> None:
        self.observations = observations

    @property
    @abstractmethod
    def weights(self) -> Float64[Tensor, " p"]:
        """The posterior mean δ̂."""

    @property
    def tangent(self) -> Linearization:
        """The linearization whose Jacobian makes deviations of f of deviations of δ."""
        return self.observations.model.lin

    @property
    @abstractmethod
    def log_evidence(self) -> float:
        """Log p(y)."""

    @abstractmethod
    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        """The variance of every latent value."""

    @abstractmethod
    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        """The covariance of all latent values."""

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        """The covariance of the outputs of each example."""
        c = self.observations.c
        parts = []
        for few in x.batches(_TOGETHER):
            whole = self.covariance(few).view(len(few), c, len(few), c)
            parts.append(whole.diagonal(dim1=0, dim2=2).movedim(2, 0))
        return torch.cat(parts)

    @abstractmethod
    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        """Samples of δ."""

    @property
    def evidence(self) -> Estimate:
        """Log p(y), with its standard error where it is estimated."""
        return Estimate(self.log_evidence, 0.0, 0)

    @property
    def solution(self) -> Solution | None:
        """What an iterative solver reached for the mean; None where there was none."""
        return None

    @property
    def precision(self) -> tuple[Float64[Tensor, "n c c"], Float64[Tensor, "n c"]]:
        """The diagonal blocks of A⁻¹ and the vector A⁻¹ (y − m), for A = K + Σ.

        Raises:
            InvalidOption: a method that does not factorise.
        """
        raise InvalidOption(
            "leave_one_out: needs the inverse of the covariance, which is not formed by iterative solvers, samples or "
            "landmarks; use FunctionSpace() or WeightSpace() on fewer examples."
        )

    @abstractmethod
    def extended(self, more: Observations) -> State:
        """The posterior given ``more`` as well."""


class Method(ABC):
    """Options of one way to compute a posterior.

    Attributes:
        exact: whether, without arguments, it gives the posterior up to rounding.
    """

    exact: ClassVar[bool] = True

    @property
    def streams(self) -> bool:
        """Whether the examples of a DataLoader or a memory map need not be in memory all at once."""
        return False

    def check(self, likelihood: Likelihood) -> None:
        """Refuse a likelihood that it cannot infer with: here any but Gaussian noise.

        Raises:
            InvalidOption: says which methods can.
        """
        if not isinstance(likelihood, Gaussian):
            raise InvalidOption(
                f"method: {type(self).__name__} is for Gaussian noise, and the likelihood is "
                f"{type(likelihood).__name__}; take jacana.Laplace(), jacana.Variational() or jacana.MAP()."
            )

    @abstractmethod
    def condition(self, observations: Observations, *, progress: bool) -> State:
        """The posterior given ``observations``."""
