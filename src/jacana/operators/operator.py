"""Operator: a matrix known by its two products; everything else is derived from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Real
from typing import final, overload

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from jacana.errors import InvalidData

__all__ = ["Operator", "finite"]

_COLUMNS = 256


class Operator(ABC):
    """A linear map of shape (rows, columns) in one dtype on one device.

    A subclass gives ``shape``, ``dtype``, ``device`` and the two products :meth:`times` and :meth:`transposed_times`;
    ``@``, ``.T``, ``to_dense``, ``diagonal``, sums and scaling follow, and may be overridden where there is a
    shorter way. ``@`` checks what comes and what goes; the two products do not, and never wait for a device. Products
    have no gradient with respect to the vector.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(rows, columns)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of every product."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the products are computed."""

    @property
    def rows_together(self) -> int:
        """How many rows in a row are had at the cost of one, as an example's outputs are."""
        return 1

    @abstractmethod
    def times(self, matrix: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        """The product with k columns, in the operator's dtype and on its device."""

    @abstractmethod
    def transposed_times(self, matrix: Float[Tensor, "rows k"]) -> Float[Tensor, "columns k"]:
        """The transposed product with k columns."""

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, other: Operator) -> Operator: ...

    def __matmul__(self, other: Tensor | Operator) -> Tensor | Operator:
        """A @ v for a vector, A @ V for a matrix; A @ B for an operator is one again, never formed.

        Raises:
            InvalidData: not a tensor or operator of fitting length.
        """
        if isinstance(other, Operator):
            return _Product(self, other)
        if not isinstance(other, Tensor):
            raise InvalidData(f"@: got {type(other).__name__}; expected a tensor of length {self.shape[1]}.")
        if other.ndim not in (1, 2) or len(other) != self.shape[1] or other.is_complex():
            raise InvalidData(
                f"@: got shape {tuple(other.shape)} and {other.dtype}; expected real ({self.shape[1]},) or "
                f"({self.shape[1]}, k) for an operator of shape {tuple(self.shape)}."
            )
        with torch.inference_mode(False):
            given = other.clone() if other.is_inference() else other.detach()
            matrix = given.to(self.device, self.dtype)
        if not _all_finite(matrix):
            raise InvalidData(
                f"@: got NaN or infinite entries (or too large for {self.dtype}); expected finite numbers."
            )
        product = self.times(matrix.unsqueeze(1)).squeeze(1) if matrix.ndim == 1 else self.times(matrix)
        return finite(product, "@")

    def precise_times(self, matrix: Float64[Tensor, "columns k"]) -> Float64[Tensor, "rows k"]:
        """The product in float64, as precise as the operator can have it: what a solver's residual is taken by."""
        return self.times(matrix.to(self.dtype)).to(torch.float64)

    def columns(
        self,
        index: Int64[Tensor, " k"],
        dtype: torch.dtype = torch.float64,  # noqa: ARG002 - of operators that contract
    ) -> Float64[Tensor, "rows k"]:
        """Some of the columns, in float64; contracted in ``dtype`` where an operator can."""
        parts = []
        for some in torch.split(index, _COLUMNS):
            units = torch.zeros(self.shape[1], len(some), dtype=torch.float64, device=self.device)
            units[some, torch.arange(len(some), device=self.device)] = 1.0
            parts.append(self.precise_times(units))
        return torch.cat(parts, dim=1)

    def precise_diagonal(self) -> Float64[Tensor, " rows"]:
        """The diagonal in float64, as precise as the operator can have it."""
        return self.diagonal().to(torch.float64)

    def diagonal_at(self, index: Int64[Tensor, " k"]) -> Float64[Tensor, " k"]:
        """Some entries of the diagonal of a square operator."""
        return self.precise_diagonal()[index]

    @property
    def T(self) -> Operator:
        """The transpose."""
        return _Transpose(self)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The matrix itself, by products with unit vectors along the shorter side."""
        rows, columns = self.shape
        if rows < columns:
            return self.T.to_dense().T
        parts = [self.times(unit) for unit in _unit_vectors(columns, self.dtype, self.device)]
        return torch.cat(parts, dim=1)

    def diagonal(self) -> Float[Tensor, " rows"]:
        """The diagonal of a square operator.

        Raises:
            InvalidData: not square.
        """
        rows, columns = self.shape
        if rows != columns:
            raise InvalidData(
                f"diagonal: the operator has shape {(rows, columns)}; a diagonal needs a square one; use .to_dense()."
            )
        entries = torch.empty(rows, dtype=self.dtype, device=self.device)
        start = 0
        for unit in _unit_vectors(columns, self.dtype, self.device):
            stop = start + unit.shape[1]
            entries[start:stop] = (self.times(unit) * unit).sum(0)
            start = stop
        return entries

    def __add__(self, other: Operator) -> Operator:
        return _Sum(self, other)

    def __sub__(self, other: Operator) -> Operator:
        return _Sum(self, _Scaled(other, -1.0) if isinstance(other, Operator) else other)

    def __mul__(self, factor: float) -> Operator:
        return _Scaled(self, factor)

    def __rmul__(self, factor: float) -> Operator:
        return _Scaled(self, factor)

    def __truediv__(self, factor: float) -> Operator:
        return _Scaled(self, 1.0 / factor if isinstance(factor, Real) and factor else math.nan)

    def __neg__(self) -> Operator:
        return _Scaled(self, -1.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({self.shape[0]} x {self.shape[1]}, {self.dtype})"


class _Derived(Operator):
    """An operator with the dtype and device of the one that it is made from."""

    def __init__(self, base: Operator) -> None:
        self._base = base

    @property
    def shape(self) -> torch.Size:
        return self._base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._base.dtype

    @property
    def device(self) -> torch.device:
        return self._base.device


@final
class _Transpose(_Derived):
    @property
    def shape(self) -> torch.Size:
        rows, columns = self._base.shape
        return torch.Size((columns, rows))

    def times(self, matrix: Tensor) -> Tensor:
        return self._base.transposed_times(matrix)

    def transposed_times(self, matrix: Tensor) -> Tensor:
        return self._base.times(matrix)

    @property
    def T(self) -> Operator:
        return self._base

    def to_dense(self) -> Tensor:
        if self.shape[0] >= self.shape[1] and type(self._base).to_dense is Operator.to_dense:
            return super().to_dense()
        return self._base.to_dense().T

    def diagonal(self) -> Tensor:
        return self._base.diagonal()


@final
class _Scaled(_Derived):
    def __init__(self, base: Operator, factor: float) -> None:
        if isinstance(factor, bool) or not isinstance(factor, Real) or not math.isfinite(factor):
            raise InvalidData(f"*: got the factor {factor!r}; pass a finite real number to scale an operator.")
        super().__init__(base)
        self._factor: float = float(factor)

    def times(self, matrix: Tensor) -> Tensor:
        return self._factor * self._base.times(matrix)

    def transposed_times(self, matrix: Tensor) -> Tensor:
        return self._factor * self._base.transposed_times(matrix)

    def to_dense(self) -> Tensor:
        return self._factor * self._base.to_dense()

    def diagonal(self) -> Tensor:
        return self._factor * self._base.diagonal()


@final
class _Sum(_Derived):
    def __init__(self, left: Operator, right: Operator) -> None:
        if not isinstance(right, Operator) or left.shape != right.shape:
            got = tuple(right.shape) if isinstance(right, Operator) else type(right).__name__
            raise InvalidData(f"+: got {got}; expected an operator of shape {tuple(left.shape)}.")
        super().__init__(left)
        self._other = right

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self._base.dtype, self._other.dtype)

    def times(self, matrix: Tensor) -> Tensor:
        return self._base @ matrix + self._other @ matrix

    def transposed_times(self, matrix: Tensor) -> Tensor:
        return self._base.T @ matrix + self._other.T @ matrix

    def to_dense(self) -> Tensor:
        return self._base.to_dense() + self._other.to_dense()

    def diagonal(self) -> Tensor:
        return self._base.diagonal() + self._other.diagonal()


@final
class _Product(_Derived):
    def __init__(self, left: Operator, right: Operator) -> None:
        if left.shape[1] != right.shape[0]:
            raise InvalidData(
                f"@: operators of shape {tuple(left.shape)} and {tuple(right.shape)} do not fit together."
            )
        super().__init__(left)
        self._other = right

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self._base.shape[0], self._other.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self._base.dtype, self._other.dtype)

    def times(self, matrix: Tensor) -> Tensor:
        return self._base @ (self._other @ matrix)

    def transposed_times(self, matrix: Tensor) -> Tensor:
        return self._other.T @ (self._base.T @ matrix)

    @property
    def T(self) -> Operator:
        return _Product(self._other.T, self._base.T)


def finite(product: Tensor, what: str) -> Tensor:
    """A product as it is, if all its entries are finite.

    Raises:
        InvalidData: they are not.
    """
    if not _all_finite(product):
        raise InvalidData(
            f"{what}: the product with finite numbers has NaN or infinite entries: the Jacobian or the likelihood's "
            f"curvature is not finite at these data, or they overflow {product.dtype}. Keep the network away from "
            "singular points, e.g. (x + 1e-12).sqrt(), or use it in float64."
        )
    return product


def _all_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())  # the sum may overflow


def _unit_vectors(n: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The identity, some columns at a time."""
    blocks = []
    for start in range(0, n, _COLUMNS):
        k = min(_COLUMNS, n - start)
        block = torch.zeros(n, k, dtype=dtype, device=device)
        block[torch.arange(start, start + k), torch.arange(k)] = 1.0
        blocks.append(block)
    return blocks
