"""Shifts and scales by a parameter that is broadcast over the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jacana.linearization.rules.rule import Call, Decomposition, Rule, Use, unbroadcast

__all__ = ["Difference", "Product", "Quotient", "QuotientInPlace", "Sum", "broadcast", "repeated"]


def repeated(parameter: Tensor, shape: Sequence[int]) -> list[int]:
    """The dimensions of ``shape`` along which a parameter that is broadcast to it is the same."""
    new = len(shape) - parameter.ndim
    return [dim for dim in range(len(shape)) if dim < new or parameter.shape[dim - new] == 1]


def broadcast(*tensors: Tensor) -> tuple[int, ...]:
    """The shape of what an elementwise operation makes of them."""
    return tuple(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))  # type: ignore[no-untyped-call]


def _shared(first: Any, second: Any) -> tuple[nn.Parameter, Tensor, tuple[int, ...]] | None:
    """The parameter among two operands, the other operand, and the shape of the output; None if it is not repeated."""
    for parameter, value in ((second, first), (first, second)):
        if isinstance(parameter, nn.Parameter) and isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            shape = broadcast(parameter, value)
            return (parameter, value, shape) if repeated(parameter, shape) else None
    return None


class Sum(Rule):
    """y = x + p: the sum of g over what p is repeated along."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__,
    )  # fmt: skip

    def read(self, input: Any, other: Any, **kwargs: Any) -> Call | None:
        found = None if kwargs else _shared(input, other)
        if found is None:
            return None
        parameter, _, shape = found
        return Call({"parameter": parameter}, (), repeated(parameter, shape))

    def formed(self, role: str, use: Use) -> Tensor:
        return unbroadcast(use.cotangents.to(use.working), use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Shifted(), torch.randn(3, 2, 4)


class Difference(Rule):
    """y = x − p: minus the sum of g over what p is repeated along; y = p − x: the sum."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.sub, torch.subtract, Tensor.sub, Tensor.sub_, Tensor.subtract, Tensor.subtract_,
        Tensor.__sub__, Tensor.__isub__,
    )  # fmt: skip

    def read(self, input: Any, other: Any, **kwargs: Any) -> Call | None:
        found = None if kwargs else _shared(input, other)
        if found is None:
            return None
        parameter, _, shape = found
        return Call({"parameter": parameter}, (), repeated(parameter, shape), -1.0 if parameter is other else 1.0)

    def formed(self, role: str, use: Use) -> Tensor:
        return use.options * unbroadcast(use.cotangents.to(use.working), use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Centred(), torch.randn(3, 2, 4)


class Product(Rule):
    """y = x p: the sum of g x over what p is repeated along."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.multiply, Tensor.multiply_,
        Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__,
    )  # fmt: skip

    def read(self, input: Any, other: Any, **kwargs: Any) -> Call | None:
        found = None if kwargs else _shared(input, other)
        if found is None:
            return None
        parameter, value, shape = found
        # Cloned before it is expanded: x *= p writes into x.
        return Call({"parameter": parameter}, (value.clone().expand(shape),), repeated(parameter, shape))

    def formed(self, role: str, use: Use) -> Tensor:
        (value,) = use.inputs
        cotangents = use.cotangents.to(use.working) * value.to(use.working).unsqueeze(1)
        return unbroadcast(cotangents, use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Shifted(), torch.randn(3, 2, 4)


class Quotient(Decomposition):
    """x / p = x (1 / p) and p / x = p (1 / x)."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__,
    )  # fmt: skip

    def read(self, input: Any, other: Any, **kwargs: Any) -> bool | None:
        found = None if kwargs else _shared(input, other)
        # The reciprocal of a whole number is rounded to torch's default, whatever p is.
        return True if found is not None and found[1].is_floating_point() else None

    def write_out(self, form: bool, input: Tensor, other: Tensor) -> Tensor:
        return input * other.reciprocal()

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Centred(), torch.randn(3, 2, 4)


class QuotientInPlace(Quotient):
    """The same, written into x."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        Tensor.div_, Tensor.divide_, Tensor.true_divide_, Tensor.__itruediv__,
    )  # fmt: skip

    def write_out(self, form: bool, input: Tensor, other: Tensor) -> Tensor:
        return input.mul_(other.reciprocal())


class _Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(2, 1)), nn.Parameter(torch.randn(1, 4))
        self.last = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * x
        x += self.shift
        out: Tensor = torch.sin(x)
        out *= self.last
        return out.sum(1)[:, :2]


class _Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.scale = nn.Parameter(torch.randn(2, 1)), nn.Parameter(torch.rand(4) + 0.5)
        self.top, self.bottom = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.rand(()) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.exp((x - self.mean) / self.scale)
        out = self.top - self.top / (1.0 + out)
        out -= self.mean
        out /= self.bottom
        return out.sum(1)[:, :2]
