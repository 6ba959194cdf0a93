"""Parameters that are repeated for every example: class tokens, learned queries, initial states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jacana.linearization.rules.elementwise import repeated
from jacana.linearization.rules.rule import Call, Rule, Use, unbroadcast

__all__ = ["Expand", "ExpandAs", "Repeat"]


class Expand(Rule):
    """y = p at every place along new dimensions and those of size 1: the sum of g over these."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (Tensor.expand, Tensor.broadcast_to, torch.broadcast_to)

    def read(self, input: Tensor, *sizes: Any, size: Any = (), **options: Any) -> Call | None:
        shape = _sizes(sizes or size)
        return _call(input, shape) if shape and not options else None

    def formed(self, role: str, use: Use) -> Tensor:
        return unbroadcast(use.cotangents.to(use.working), use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Tokens(), torch.randn(3, 2, 4)


class ExpandAs(Expand):
    """The same, with the shape of another tensor."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (Tensor.expand_as,)

    def read(self, input: Tensor, other: Tensor) -> Call | None:  # type: ignore[override]
        return _call(input, tuple(other.shape))


class Repeat(Expand):
    """The same by copies, where no dimension of more than one entry is repeated."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (Tensor.repeat, Tensor.tile, torch.tile)

    def read(self, input: Tensor, *sizes: Any, repeats: Any = (), dims: Any = ()) -> Call | None:  # type: ignore[override]
        times = _sizes(sizes or repeats or dims)
        times = (1,) * (input.ndim - len(times)) + times  # a tile may name fewer dimensions than there are
        shape = (1,) * (len(times) - input.ndim) + tuple(input.shape)
        if any(count > 1 and size > 1 for count, size in zip(times, shape, strict=True)):
            return None
        return _call(input, tuple(count * size for count, size in zip(times, shape, strict=True)))


def _call(parameter: Tensor, shape: tuple[int, ...]) -> Call | None:
    if not isinstance(parameter, nn.Parameter):
        return None
    return Call({"parameter": parameter}, (), repeated(parameter, shape))


def _sizes(sizes: Any) -> tuple[int, ...]:
    """Sizes given one by one or as one sequence."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else tuple(sizes)


class _Tokens(nn.Module):
    """A token before the others, learned queries and a learned offset, by every name that repetition has."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.queries = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(2, 4))
        self.offset, self.scale = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = torch.cat([self.token.expand(n, -1, -1), x, self.offset.expand_as(x)], 1)
        queries = torch.cat([self.queries.repeat(n, 1, 1), torch.tile(self.token, (n, 1, 1))], 1)
        scale = torch.broadcast_to(self.scale, (n, 1, 4))
        return torch.tanh((queries * scale) @ x.mT).sum(1)[:, :3]
