"""Shares: the part of the kernel that one parameter tensor brings, K = Σ_θ s_θ² J_θ J_θᵀ.

Shares add over parameters, not over operations. Each is kept in the form that is cheapest to contract, always in the
dtype of the contraction: what the network computed is cast *before* it is multiplied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Formed", "Outer", "Share"]


class Share(ABC):
    """J_θ of a block of examples: rows (n·c) are function values, columns the entries of one parameter tensor."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "nc q"]:
        """The rows themselves."""

    @abstractmethod
    def accumulate(self, kernel: Float[Tensor, "nc mc"], other: Share, variance: float) -> None:
        """Add variance · J J'ᵀ to ``kernel`` in place."""

    @abstractmethod
    def blocks(self) -> Float[Tensor, "n c c"]:
        """J_i J_iᵀ of each example with itself."""

    @abstractmethod
    def pull(self, cotangents: Float[Tensor, "nc k"]) -> Float[Tensor, "q k"]:
        """J_θᵀ U."""

    @abstractmethod
    def push(self, tangents: Float[Tensor, "q k"]) -> Float[Tensor, "nc k"]:
        """J_θ V."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether no entry is NaN or infinite."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The memory that it holds."""


class Formed(Share):
    """Per-example gradients as they are, (n, c, q)."""

    def __init__(self, gradients: Float[Tensor, "n c q"]) -> None:
        self._gradients = gradients

    def dense(self) -> Float[Tensor, "nc q"]:
        return self._gradients.flatten(0, 1)

    def accumulate(self, kernel: Float[Tensor, "nc mc"], other: Share, variance: float) -> None:
        kernel.addmm_(self.dense(), other.dense().T, alpha=variance)

    def blocks(self) -> Float[Tensor, "n c c"]:
        return self._gradients @ self._gradients.mT

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> Float[Tensor, "q k"]:
        return self.dense().T @ cotangents

    def push(self, tangents: Float[Tensor, "q k"]) -> Float[Tensor, "nc k"]:
        return self.dense() @ tangents

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self._gradients).all())

    @property
    def nbytes(self) -> int:
        return self._gradients.nbytes


class Outer(Share):
    """The gradient of the W in y = W a is G ⊗ a: kept as its two factors, J J'ᵀ = (A A'ᵀ) ∘ (G G'ᵀ).

    Novak, Sohl-Dickstein, Schoenholz 2022 (arXiv 2206.08720), section 3.2. No array of W's size is ever formed.
    """

    def __init__(self, activations: Float[Tensor, "n a"], cotangents: Float[Tensor, "n c g"]) -> None:
        self.activations, self.cotangents = activations, cotangents

    def dense(self) -> Float[Tensor, "nc q"]:
        return torch.einsum("ncg,na->ncga", self.cotangents, self.activations).flatten(2).flatten(0, 1)

    def accumulate(self, kernel: Float[Tensor, "nc mc"], other: Share, variance: float) -> None:
        if not isinstance(other, Outer):
            kernel.addmm_(self.dense(), other.dense().T, alpha=variance)
            return
        n, c, _ = self.cotangents.shape
        cotangents = self.cotangents.flatten(0, 1) @ other.cotangents.flatten(0, 1).T
        activations = self.activations @ other.activations.T
        cotangents.view(n, c, -1, c).mul_(activations[:, None, :, None])
        kernel.add_(cotangents, alpha=variance)

    def blocks(self) -> Float[Tensor, "n c c"]:
        return (self.activations * self.activations).sum(1)[:, None, None] * (self.cotangents @ self.cotangents.mT)

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> Float[Tensor, "q k"]:
        n, c, g = self.cotangents.shape
        columns = [
            torch.einsum("nc,ncg->gn", column.view(n, c), self.cotangents) @ self.activations
            for column in cotangents.unbind(1)
        ]
        if not columns:
            return cotangents.new_zeros(g * self.activations.shape[1], 0)
        return torch.stack([column.flatten() for column in columns], dim=1)

    def push(self, tangents: Float[Tensor, "q k"]) -> Float[Tensor, "nc k"]:
        shape = (self.cotangents.shape[2], self.activations.shape[1])
        columns = [
            torch.einsum("ncg,ng->nc", self.cotangents, self.activations @ column.view(shape).T).flatten()
            for column in tangents.unbind(1)
        ]
        return torch.stack(columns, dim=1) if columns else tangents.new_zeros(self.cotangents[:, :, 0].numel(), 0)

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.activations).all() and torch.isfinite(self.cotangents).all())

    @property
    def nbytes(self) -> int:
        return self.activations.nbytes + self.cotangents.nbytes
