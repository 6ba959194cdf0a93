"""Point: a posterior that is one weight change, and nothing of what else it could be."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.networks import Examples
from jacana.posteriors.method import State

__all__ = ["PointState"]


class PointState(State):
    """A point: its weights, and a refusal of whatever else a posterior has.

    Attributes:
        name: what errors call its method.
        cure: a method that has what it refuses.
    """

    name: ClassVar[str]
    cure: ClassVar[str] = "jacana.Laplace()"

    @property
    def log_evidence(self) -> float:
        self._refuse("evidence")

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:  # noqa: ARG002 - of the base
        self._refuse("variance")

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:  # noqa: ARG002 - of the base
        self._refuse("covariance")

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:  # noqa: ARG002
        self._refuse("samples")

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        """Zeros: what is averaged over is the point."""
        c = self.observations.c
        return torch.zeros(len(x), c, c, dtype=torch.float64, device=self.observations.offset.device)

    def _refuse(self, what: str) -> NoReturn:
        raise InvalidOption(f"method: {self.name} is a point and has no {what}; condition with method={self.cure}.")
