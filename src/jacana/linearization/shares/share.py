"""Share: J_θ of a block of examples for a few parameter tensors θ, ready to be contracted, K = Σ_θ s_θ² J_θ J'_θᵀ.

Shares add over parameters, not over operations: several uses of one weight are one share. What the network computed is
kept in the network's dtype and cast to that of the contraction *before* it is multiplied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Share", "add_product", "strips"]

_STRIP_ROWS = 256
_STRIPS = 8


class Share(ABC):
    """Rows (n·c) are function values, columns the entries of the parameter tensors numbered ``places``.

    ``ways`` are the ways to contract it, the counts of arithmetic in :meth:`arithmetic` decide between them.
    """

    ways: ClassVar[tuple[str, ...]]

    def __init__(self, places: Sequence[int], n: int, c: int, dtype: torch.dtype) -> None:
        self.places = tuple(places)
        self.n, self.c, self.dtype = n, c, dtype

    @abstractmethod
    def dense(self, place: int) -> Float[Tensor, "nc q"]:
        """The rows themselves, of one parameter tensor."""

    @abstractmethod
    def accumulate(
        self,
        kernel: Float[Tensor, "nc mc"],
        other: Share,
        variances: Sequence[float],
        *,
        symmetric: bool = False,
        way: str | None = None,
    ) -> None:
        """Add Σ_θ variances[θ] · J_θ J'_θᵀ to ``kernel`` in place; only below the diagonal blocks if ``symmetric``."""

    @abstractmethod
    def arithmetic(self, m: int) -> dict[str, float]:
        """Operations of each way to contract with m examples, elementwise work at what it costs in multiplications."""

    @abstractmethod
    def blocks(self, variances: Sequence[float]) -> Float[Tensor, "n c c"]:
        """Σ_θ variances[θ] · J_i J_iᵀ of each example with itself."""

    @abstractmethod
    def of_output(self, k: int) -> Share:
        """The rows of output k alone."""

    @abstractmethod
    def folded(self) -> Share:
        """The rows of an example one after the other in one row, (n, c·q)."""

    @abstractmethod
    def pull(self, cotangents: Float[Tensor, "nc k"]) -> dict[int, Float[Tensor, "q k"]]:
        """J_θᵀ U of each parameter tensor."""

    @abstractmethod
    def push(self, tangents: Mapping[int, Float[Tensor, "q k"]]) -> Float[Tensor, "nc k"]:
        """Σ_θ J_θ V_θ."""

    @abstractmethod
    def held(self) -> tuple[Tensor, ...]:
        """The tensors that it holds."""

    def is_finite(self) -> Tensor:
        """Whether no entry is NaN or infinite, as a boolean on the device."""
        return torch.stack([torch.isfinite(tensor).all() for tensor in self.held()]).all()

    @property
    def nbytes(self) -> int:
        """The memory that it holds."""
        return sum(tensor.nbytes for tensor in self.held())


def strips(rows: int) -> Iterator[tuple[int, int]]:
    """Horizontal strips of a symmetric matrix: below its diagonal blocks there is little more than half of it."""
    size = max(_STRIP_ROWS, -(-rows // _STRIPS))
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def add_product(kernel: Tensor, left: Tensor, right: Tensor, factor: float, *, symmetric: bool) -> None:
    """Add factor · L Rᵀ to ``kernel`` in place."""
    for start, stop in strips(len(kernel)) if symmetric else ((0, len(kernel)),):
        columns = stop if symmetric else kernel.shape[1]
        kernel[start:stop, :columns].addmm_(left[start:stop], right[:columns].T, alpha=factor)
