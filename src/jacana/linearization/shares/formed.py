"""Formed: per-example gradients as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.shares.share import Share, add_product

__all__ = ["Formed"]


class Formed(Share):
    """The gradients of one parameter tensor, (n, c, q): J J'ᵀ is one product of matrices.

    They are held in the dtype that they were formed in, and cast to that of the contraction a few columns at a time.
    """

    ways: ClassVar[tuple[str, ...]] = ("formed",)

    def __init__(self, place: int, gradients: Float[Tensor, "n c q"], dtype: torch.dtype) -> None:
        super().__init__((place,), gradients.shape[0], gradients.shape[1], dtype)
        self.gradients = gradients

    def dense(self, place: int) -> Float[Tensor, "nc q"]:
        return self.gradients.flatten(0, 1).to(self.dtype)

    def accumulate(
        self,
        kernel: Float[Tensor, "nc mc"],
        other: Share,
        variances: Sequence[float],
        *,
        symmetric: bool = False,
        way: str | None = None,
    ) -> None:
        (place,) = self.places
        if variances[place] > 0.0:
            left = self.gradients.flatten(0, 1)
            right = other.gradients.flatten(0, 1) if isinstance(other, Formed) else other.dense(place)
            add_product(kernel, left, right, variances[place], symmetric=symmetric)

    def arithmetic(self, n: int, m: int) -> dict[str, float]:
        return {"formed": 2.0 * n * m * self.c**2 * self.gradients.shape[2]}

    def blocks(self, variances: Sequence[float]) -> Float[Tensor, "n c c"]:
        gradients = self.gradients.to(self.dtype)
        return variances[self.places[0]] * (gradients @ gradients.mT)

    def of_output(self, k: int) -> Formed:
        return Formed(self.places[0], self.gradients[:, k : k + 1], self.dtype)

    def folded(self) -> Formed:
        return Formed(self.places[0], self.gradients.flatten(1).unsqueeze(1), self.dtype)

    def mixed(self, weights: Float[Tensor, "n c r"]) -> Formed:
        mixed = weights.to(self.dtype).mT @ self.gradients.to(self.dtype)
        return Formed(self.places[0], mixed, self.dtype)

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> dict[int, Float[Tensor, "q k"]]:
        (place,) = self.places
        return {place: self.dense(place).T @ cotangents}

    def push(self, tangents: Mapping[int, Float[Tensor, "q k"]]) -> Float[Tensor, "nc k"]:
        (place,) = self.places
        return self.dense(place) @ tangents[place]

    def held(self) -> tuple[Tensor, ...]:
        return (self.gradients,)

    def holding(self, tensors: Sequence[Tensor]) -> Formed:
        return Formed(self.places[0], tensors[0], self.dtype)
