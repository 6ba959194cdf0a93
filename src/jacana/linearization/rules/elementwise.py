"""Shifts and scales by a parameter that is broadcast over the examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jacana.linearization.rules.rule import Call, Rule, Use, unbroadcast

__all__ = ["Product", "Sum"]


def _free(parameter: Tensor, other: Tensor) -> list[int] | None:
    """The dimensions of the output along which the parameter is repeated."""
    if other.ndim < parameter.ndim:
        return None
    offset = other.ndim - parameter.ndim
    return [dim for dim in range(other.ndim) if dim < offset or parameter.shape[dim - offset] == 1]


class Sum(Rule):
    """y = x + p: the sum of g over what p is repeated along."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)

    def read(self, input: Any, other: Any, **kwargs: Any) -> Call | None:
        if kwargs or not isinstance(input, Tensor) or not isinstance(other, Tensor):
            return None
        for parameter, value in ((other, input), (input, other)):
            dims = _free(parameter, value)
            if dims and isinstance(parameter, nn.Parameter) and not isinstance(value, nn.Parameter):
                return Call({"parameter": parameter}, (), dims)
        return None

    def formed(self, role: str, use: Use) -> Tensor:
        return unbroadcast(use.cotangents.to(use.dtype), use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Shifted(), torch.randn(3, 2, 4)


class Product(Rule):
    """y = x p: the sum of g x over what p is repeated along."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)

    def read(self, input: Any, other: Any, **kwargs: Any) -> Call | None:
        if kwargs or not isinstance(input, Tensor) or not isinstance(other, Tensor):
            return None
        for parameter, value in ((other, input), (input, other)):
            dims = _free(parameter, value)
            if dims and isinstance(parameter, nn.Parameter) and not isinstance(value, nn.Parameter):
                wide = value.expand_as(value + parameter)
                return Call({"parameter": parameter}, (wide,), dims)
        return None

    def formed(self, role: str, use: Use) -> Tensor:
        (value,) = use.inputs
        cotangents = use.cotangents.to(use.dtype) * value.to(use.dtype).unsqueeze(1)
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
