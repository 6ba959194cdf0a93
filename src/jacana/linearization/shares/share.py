"""Share: J_θ of a block of examples for a few parameter tensors θ, ready to be contracted, K = Σ_θ s_θ² J_θ J'_θᵀ.

Shares add over parameters, not over operations: several uses of one weight are one share. What the network computed is
kept in the network's dtype and cast to that of the contraction *before* it is multiplied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ELEMENTWISE", "WORK_BYTES", "Share", "add_factored", "add_product", "strips", "within_work"]

ELEMENTWISE = 32.0
"""Operations of a matrix product in the time of one elementwise step, roughly."""

WORK_BYTES = 2**25
"""What a tile or a chunk may take beside the kernel."""

_STRIP_ROWS = (128, 256)
_STRIPS = 8
_TILE_ROWS = 600  # and twice as many columns: measured, in both dtypes, with 300 to 2,000 examples


class Share(ABC):
    """Rows (n·c) are function values, columns the entries of the parameter tensors numbered ``places``.

    ``ways`` are the ways to contract it, the counts of arithmetic in :meth:`arithmetic` decide between them; ``origin``
    names the operations that it comes from.
    """

    ways: ClassVar[tuple[str, ...]]

    def __init__(self, places: Sequence[int], n: int, c: int, dtype: torch.dtype) -> None:
        self.places = tuple(places)
        self.n, self.c, self.dtype = n, c, dtype
        self.origin = "autodiff"

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
    def arithmetic(self, n: int, m: int) -> dict[str, float]:
        """Operations of each way to contract n such examples with m; an elementwise step counts :data:`ELEMENTWISE`."""

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
    def mixed(self, weights: Float[Tensor, "n c r"]) -> Share:
        """The rows of each example combined, R_iᵀ J_i."""

    def squares(self) -> dict[int, Float[Tensor, " q"]]:
        """Σ over the rows of the squared entries, of each parameter tensor."""
        found: dict[int, Tensor] = {}
        for place in self.places:
            size = 1
            start = 0
            while start < self.n:
                part = self.holding([tensor[start : start + size] for tensor in self.held()])
                rows = part.dense(place)
                found[place] = found.get(place, 0.0) + rows.square().sum(0)
                start += size
                size = max(1, WORK_BYTES // (self.c * rows.shape[1] * self.dtype.itemsize))
        return found

    @abstractmethod
    def pull(self, cotangents: Float[Tensor, "nc k"]) -> dict[int, Float[Tensor, "q k"]]:
        """J_θᵀ U of each parameter tensor."""

    @abstractmethod
    def push(self, tangents: Mapping[int, Float[Tensor, "q k"]]) -> Float[Tensor, "nc k"]:
        """Σ_θ J_θ V_θ."""

    def formed(self) -> Sequence[Share]:
        """The same with its gradients formed, once for whatever follows, where an operation has many positions."""
        return [self]

    @abstractmethod
    def held(self) -> tuple[Tensor, ...]:
        """The tensors that it holds."""

    @abstractmethod
    def holding(self, tensors: Sequence[Tensor]) -> Share:
        """The same share with other tensors held, in the order of :meth:`held`: of other examples, or of more."""

    @property
    def layout(self) -> tuple[object, ...]:
        """What shares of other examples must have in common with this one to be held together with it."""
        shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in self.held())
        return type(self), self.places, self.c, self.dtype, shapes

    def is_finite(self) -> Tensor:
        """Whether no entry is NaN or infinite, as a boolean on the device."""
        extremes = [torch.stack(tensor.aminmax()) for tensor in self.held() if tensor.is_floating_point()]
        return torch.stack([torch.isfinite(pair).all() for pair in extremes]).all()

    @property
    def nbytes(self) -> int:
        """The memory that it holds."""
        return sum(tensor.nbytes for tensor in self.held())


def within_work(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in another dtype if that fits in the work space; as it is, to be cast in pieces, if not."""
    return tensor.to(dtype) if tensor.numel() * dtype.itemsize <= WORK_BYTES else tensor


def strips(rows: int) -> Iterator[tuple[int, int]]:
    """Horizontal strips of a symmetric matrix: below its diagonal blocks there is little more than half of it."""
    least, most = _STRIP_ROWS
    size = max(least, min(most, -(-rows // _STRIPS)))
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def add_product(kernel: Tensor, left: Tensor, right: Tensor, factor: float, *, symmetric: bool) -> None:
    """Add factor · L Rᵀ to ``kernel`` in place, cast to its dtype as many columns at a time as the work space holds."""
    width = left.shape[1]
    size = width
    if left.dtype != kernel.dtype or right.dtype != kernel.dtype:
        rows = len(left) if right is left else len(left) + len(right)
        size = max(1, WORK_BYTES // (rows * kernel.element_size()))
    for first in range(0, width, size):
        ours = left[:, first : first + size].to(kernel.dtype)
        theirs = ours if right is left else right[:, first : first + size].to(kernel.dtype)
        for start, stop in strips(len(kernel)) if symmetric else ((0, len(kernel)),):
            columns = stop if symmetric else kernel.shape[1]
            kernel[start:stop, :columns].addmm_(ours[start:stop], theirs[:columns].T, alpha=factor)


def add_factored(
    kernel: Float[Tensor, "nc mc"],
    left: Float[Tensor, "n c t g"],
    right: Float[Tensor, "m c s g"],
    alike: Callable[[slice, slice], Float[Tensor, "i t j s"]],
    *,
    symmetric: bool,
) -> None:
    """Add Σ_{t,s} alike[n,t,m,s] (L[n,k,t]·R[m,l,s]) to ``kernel`` in place, in tiles that fit in the work space."""
    (n, c, t, _), (m, _, s, _) = left.shape, right.shape
    rows_at_once = max(1, min(n, _TILE_ROWS // (c * t)))
    columns_at_once = max(1, min(m, 2 * _TILE_ROWS // (c * s)))
    work = kernel.new_empty(rows_at_once * c * t * columns_at_once * c * s)  # made once: fresh pages are slow
    by_example = torch.unflatten(torch.unflatten(kernel, 1, (m, c)), 0, (n, c))
    for start in range(0, n, rows_at_once):
        stop = min(start + rows_at_once, n)
        rows = left[start:stop].to(kernel.dtype).flatten(0, 2)
        last = stop if symmetric else m
        for first in range(0, last, columns_at_once):
            end = min(first + columns_at_once, last)
            columns = right[first:end].to(kernel.dtype).flatten(0, 2)
            if rows.requires_grad or columns.requires_grad:  # the graph keeps what it needs itself
                product = rows @ columns.T
            else:
                product = work[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=product)
            product = product.view(stop - start, c, t, end - first, c, s)
            same = alike(slice(start, stop), slice(first, end))
            tile = by_example[start:stop, :, first:end]
            if t == s == 1:
                tile.addcmul_(product[:, :, 0, ..., 0], same)
            else:
                tile.add_(product.mul_(same[:, None, :, :, None, :]).sum((2, 5)))
