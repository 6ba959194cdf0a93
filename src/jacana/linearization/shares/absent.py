"""Absent: parameters that the output does not depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.shares.share import Share

__all__ = ["Absent"]


class Absent(Share):
    """J_θ = 0, with no memory and no work."""

    ways: ClassVar[tuple[str, ...]] = ("none",)

    def __init__(self, sizes: Mapping[int, int], n: int, c: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(sorted(sizes), n, c, dtype)
        self._sizes, self._zero = dict(sizes), torch.zeros((), dtype=dtype, device=device)

    def dense(self, place: int) -> Float[Tensor, "nc q"]:
        return self._zero.expand(self.n * self.c, self._sizes[place])

    def accumulate(
        self,
        kernel: Float[Tensor, "nc mc"],
        other: Share,
        variances: Sequence[float],
        *,
        symmetric: bool = False,
        way: str | None = None,
    ) -> None:
        """Nothing to add."""

    def arithmetic(self, n: int, m: int) -> dict[str, float]:
        return {"none": 0.0}

    def blocks(self, variances: Sequence[float]) -> Float[Tensor, "n c c"]:
        return self._zero.expand(self.n, self.c, self.c)

    def of_output(self, k: int) -> Absent:
        return Absent(self._sizes, self.n, 1, self.dtype, self._zero.device)

    def folded(self) -> Absent:
        sizes = {place: self.c * size for place, size in self._sizes.items()}
        return Absent(sizes, self.n, 1, self.dtype, self._zero.device)

    def mixed(self, weights: Float[Tensor, "n c r"]) -> Absent:
        return Absent(self._sizes, self.n, weights.shape[2], self.dtype, self._zero.device)

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> dict[int, Float[Tensor, "q k"]]:
        return {place: self._zero.expand(size, cotangents.shape[1]) for place, size in self._sizes.items()}

    def push(self, tangents: Mapping[int, Float[Tensor, "q k"]]) -> Float[Tensor, "nc k"]:
        return self._zero.expand(self.n * self.c, next(iter(tangents.values())).shape[1])

    def held(self) -> tuple[Tensor, ...]:
        return (self._zero.expand(self.n),)  # what tells how many examples there are

    def holding(self, tensors: Sequence[Tensor]) -> Absent:
        return Absent(self._sizes, len(tensors[0]), self.c, self.dtype, self._zero.device)

    @property
    def nbytes(self) -> int:
        return 0
