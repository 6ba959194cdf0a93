"""A parameter in place of some entries: mask tokens, values for what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jacana.linearization.rules.elementwise import broadcast, repeated
from jacana.linearization.rules.rule import Call, Rule, Use, unbroadcast

__all__ = ["Where", "WhereOfTensor"]


class Where(Rule):
    """y = p where m, else q: p gets g where m, q gets it elsewhere, summed over what each is repeated along."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.where,)

    def read(self, condition: Tensor, input: Any = None, other: Any = None, **options: Any) -> Call | None:
        chosen = {"input": input, "other": other}
        parameters = {role: value for role, value in chosen.items() if isinstance(value, nn.Parameter)}
        if options or not parameters or isinstance(condition, nn.Parameter):
            return None
        shape = broadcast(*(value for value in (condition, input, other) if isinstance(value, Tensor)))
        dims = set.intersection(*(set(repeated(parameter, shape)) for parameter in parameters.values()))
        return Call(parameters, (condition.to(torch.bool, copy=True).expand(shape),), sorted(dims))

    def formed(self, role: str, use: Use) -> Tensor:
        (condition,) = use.inputs
        taken = condition if role == "input" else ~condition
        cotangents = use.cotangents.to(use.working).masked_fill(~taken.unsqueeze(1), 0.0)
        return unbroadcast(cotangents, use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Masked(), torch.randn(3, 4, 2)


class WhereOfTensor(Where):
    """The same as a method of what is chosen where m."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (Tensor.where,)

    def read(self, input: Tensor, condition: Any = None, other: Any = None, **options: Any) -> Call | None:  # type: ignore[override]
        return super().read(condition, input, other, **options)


class _Masked(nn.Module):
    """A token for masked positions, another for what is too large, and a choice between two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.most = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(4, 1))
        self.left, self.right = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        positive = x[:, :, :1] > 0
        y = torch.tanh(torch.where(positive, self.token, x))
        y = y.where(x < 0.7, self.most)
        return (y * torch.where(positive, self.left, self.right)).sum(1)
