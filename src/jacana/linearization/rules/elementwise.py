"""Shifts and scales by a parameter that is broadcast over the examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jacana.linearization.rules.rule import Call, Rule, Use, unbroadcast

__all__ = ["Product", "Sum"]


def _shared(first: Any, second: Any) -> tuple[nn.Parameter, Tensor, list[int]] | None:
    """The parameter among two operands, the other, and the dimensions of the output along which it is repeated."""
    for parameter, value in ((second, first), (first, second)):
        if not isinstance(parameter, nn.Parameter) or not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            continue
        offset = value.ndim - parameter.ndim
        dims = [dim for dim in range(value.ndim) if dim < offset or parameter.shape[dim - offset] == 1]
        if offset >= 0 and dims:
            return parameter, value, dims
    return None


class Sum(Rule):
    """y = x + p: the sum of g over what p is repeated along."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__,
    )  # fmt: skip

    def read(self, input: Any, other: Any, **kwargs: Any) -> Call | None:
        found = None if kwargs else _shared(input, other)
        return None if found is None else Call({"parameter": found[0]}, (), found[2])

    def formed(self, role: str, use: Use) -> Tensor:
        return unbroadcast(use.cotangents.to(use.working), use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Shifted(), torch.randn(3, 2, 4)


class Product(Rule):
    """y = x p: the sum of g x over what p is repeated along."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__,
    )  # fmt: skip

    def read(self, input: Any, other: Any, **kwargs: Any) -> Call | None:
        found = None if kwargs else _shared(input, other)
        if found is None:
            return None
        parameter, value, dims = found
        return Call({"parameter": parameter}, (value.expand_as(value + parameter),), dims)

    def formed(self, role: str, use: Use) -> Tensor:
        (value,) = use.inputs
        cotangents = use.cotangents.to(use.working) * value.to(use.working).unsqueeze(1)
        return unbroadcast(cotangents, use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Shifted(), torch.randn(3, 2, 4)


class _Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(2, 1)), nn.Parameter(torch.randn(1, 4))
        self.last = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (torch.tanh(self.scale * x + self.shift) * self.last).sum(1)
        return out[:, :2]
