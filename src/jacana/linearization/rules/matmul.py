"""Products of matrices, written out in linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Decomposition

__all__ = ["MOST_MATRICES", "Addmm", "Bilinear", "Matmul"]

MOST_MATRICES = 64
"""A stack of more matrices is left to autodiff: each is a linear map of its own."""


class Matmul(Decomposition):
    """x P = linear(x, Pᵀ) and P x = (xᵀ Pᵀ)ᵀ; a stack of matrices P one by one."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.mv, Tensor.mv, torch.bmm, Tensor.bmm,
    )  # fmt: skip

    def read(self, input: Any, other: Any = None, **options: Any) -> str | None:
        side = "right" if isinstance(other, nn.Parameter) else "left"
        parameter, value = (other, input) if side == "right" else (input, other)
        if options or not isinstance(value, Tensor) or value.ndim < 2 or parameter.ndim < 1:
            return None
        return side if math.prod(parameter.shape[:-2]) <= MOST_MATRICES else None

    def write_out(self, form: str, input: Tensor, other: Tensor) -> Tensor:
        if form == "right":
            return _times(input, other)
        return _times(other.mT, input) if input.ndim == 1 else _times(other.mT, input.mT).mT

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Products(), torch.randn(3, 2, 4)


def _times(x: Tensor, p: Tensor) -> Tensor:
    """The product x p with a vector, a matrix or a stack of them."""
    if p.ndim == 1:
        return F.linear(x, p.unsqueeze(0)).squeeze(-1)
    if p.ndim == 2:
        return F.linear(x, p.mT)
    if x.ndim < p.ndim:
        x = x.view(*(1 for _ in range(p.ndim - x.ndim)), *x.shape)
    dim = x.ndim - p.ndim
    if len(p) == 1:
        return _times(x, p[0])
    each = x.expand(*(len(p) if i == dim else -1 for i in range(x.ndim))).unbind(dim)
    return torch.stack([_times(part, matrix) for part, matrix in zip(each, p.unbind(), strict=True)], dim)


class Addmm(Decomposition):
    """b + x W = linear(x, Wᵀ, b): the Conv1D of GPT-2."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.addmm, Tensor.addmm)

    def read(self, input: Any, mat1: Any = None, mat2: Any = None, *more: Any, **options: Any) -> bool | None:
        tensors = isinstance(input, Tensor) and isinstance(mat1, Tensor) and isinstance(mat2, Tensor)
        scaled = any(options.pop(name, 1) != 1 for name in ("beta", "alpha"))
        if more or options or scaled or not tensors or isinstance(mat1, nn.Parameter):
            return None
        return True if input.shape == mat2.shape[1:] else None

    def write_out(self, form: bool, input: Tensor, mat1: Tensor, mat2: Tensor, **_: Any) -> Tensor:
        return F.linear(mat1, mat2.mT, input)

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Products(), torch.randn(3, 2, 4)


class Bilinear(Decomposition):
    """y_k = xᵀ W_k z + b_k = linear(x zᵀ, W, b) with matrices as vectors."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.bilinear,)

    def read(self, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool | None:
        plain = not isinstance(input1, nn.Parameter) and not isinstance(input2, nn.Parameter)
        return True if plain and input1.ndim > 1 else None

    def write_out(
        self, form: bool, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        outer = (input1.unsqueeze(-1) * input2.unsqueeze(-2)).flatten(-2)
        return F.linear(outer, weight.flatten(1), bias)

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Products(), torch.randn(3, 2, 4)


class _Products(nn.Module):
    """Conv1D as in GPT-2, heads with a matrix each, a mixing of positions, adapters, a bilinear head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4) / 2), nn.Parameter(torch.randn(4))
        self.heads, self.mix = nn.Parameter(torch.randn(3, 4, 2) / 2), nn.Parameter(torch.randn(2, 2))
        self.down, self.up = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 4))
        self.pool, self.last = nn.Parameter(torch.randn(2)), nn.Bilinear(4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.flatten(0, 1), self.weight).view_as(x)
        y = torch.tanh(self.mix @ y + y @ self.down @ self.up)
        z = (torch.tanh(y.unsqueeze(1) @ self.heads) @ self.pool).sum(2)
        out: Tensor = self.last(y.sum(1), z)
        return out
