"""Goal: when a column of an iterative solution is good enough."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = ["Goal", "SmallFormError", "SmallResidual", "SmallSampleError", "SmallVarianceError"]


class Goal(ABC):
    """A quantity of each column, relative to what is allowed: reached at one."""

    @abstractmethod
    def excess(
        self,
        which: Tensor,
        x: Float64[Tensor, "n k"],
        right: Float64[Tensor, "n k"],
        remainder: Float64[Tensor, "n k"],
        error: Float64[Tensor, " k"],
    ) -> Float64[Tensor, " k"]:
        """How far the columns numbered ``which`` are from the goal.

        Args:
            which: their numbers.
            x: the iterates.
            right: B.
            remainder: B − A X.
            error: a bound of ‖A⁻¹b − x‖²_A.
        """


@final
@dataclass(frozen=True)
class SmallResidual(Goal):
    """‖b − A x‖ ≤ rtol ‖b‖."""

    rtol: float

    def excess(self, which: Tensor, x: Tensor, right: Tensor, remainder: Tensor, error: Tensor) -> Tensor:  # noqa: ARG002
        allowed = self.rtol * torch.linalg.vector_norm(right, dim=0)
        norms = torch.linalg.vector_norm(remainder, dim=0)
        return torch.where(norms > 0.0, norms / torch.where(allowed > 0.0, allowed, 1.0), 0.0)


@final
@dataclass(frozen=True)
class SmallVarianceError(Goal):
    """‖A⁻¹b − x‖²_A ≤ rtol of the variance k** − 2 xᵀb + xᵀA x that x gives: by so much it is too large."""

    rtol: float
    prior: Float64[Tensor, " m"]

    def excess(self, which: Tensor, x: Tensor, right: Tensor, remainder: Tensor, error: Tensor) -> Tensor:
        variance = self.prior[which] - (x * (right + remainder)).sum(0)
        return torch.where(error > 0.0, error / (self.rtol * variance.clamp_min(torch.finfo(torch.float64).tiny)), 0.0)


@final
@dataclass(frozen=True)
class SmallSampleError(Goal):
    """‖Σ^-½ (b − A x)‖² ≤ rtol · d, with d the degrees of freedom that the data determine; and a small residual.

    What is wrong with a sample is then, over the data, less than a share rtol of the posterior's variance: with
    A = K + Σ and e = A⁻¹b − x, ‖Σ^-½ K e‖ ≤ ‖Σ^-½ A e‖, and E ‖Σ^-½ J (δ_s − δ̂)‖² = tr(K A⁻¹) = d.
    """

    rtol: float
    noise: Float64[Tensor, " n"]
    freedom: float
    residual: SmallResidual

    def excess(self, which: Tensor, x: Tensor, right: Tensor, remainder: Tensor, error: Tensor) -> Tensor:
        weighted = (remainder.square() / self.noise.unsqueeze(1)).sum(0) / (self.rtol * max(self.freedom, 1.0))
        return torch.maximum(weighted.sqrt(), self.residual.excess(which, x, right, remainder, error))


@final
@dataclass(frozen=True)
class SmallFormError(Goal):
    """‖A⁻¹b − x‖²_A ≤ rtol of xᵀ(b + r) + ‖A⁻¹b − x‖²_A ≥ bᵀA⁻¹b, with r = b − A x: by so much that is too large."""

    rtol: float

    def excess(self, which: Tensor, x: Tensor, right: Tensor, remainder: Tensor, error: Tensor) -> Tensor:  # noqa: ARG002
        form = (x * (right + remainder)).sum(0) + error
        return torch.where(error > 0.0, error / (self.rtol * form.clamp_min(torch.finfo(torch.float64).tiny)), 0.0)
