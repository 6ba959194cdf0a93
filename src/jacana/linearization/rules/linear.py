"""y = a Wᵀ + b at any number of positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Call, Rule, Use
from jacana.linearization.shares import Outer, Share

__all__ = ["Linear"]


class Linear(Rule):
    """W: Σ_t g_t ⊗ a_t; b: Σ_t g_t."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.linear,)

    def read(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
        if input.ndim < 2 or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            return None
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return Call(parameters, (input,), range(input.ndim - 1))

    def formed(self, role: str, use: Use) -> Tensor:
        inputs, cotangents = _positions(use)
        cotangents = cotangents.to(use.working)
        if role == "bias":
            return cotangents.sum(2)
        return torch.einsum("nctg,nta->ncga", cotangents, inputs.to(use.working))

    def kept(self, use: Use, c: int) -> int | None:
        inputs, cotangents = _positions(use)
        return inputs.shape[1] * (inputs.shape[2] + c * cotangents.shape[3])

    def share(self, uses: Sequence[Use]) -> Share:
        places = uses[0].places
        return Outer.joined([Outer(places.get("weight"), places.get("bias"), *_positions(u), u.dtype) for u in uses])

    def example(self) -> tuple[nn.Module, Tensor]:
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)), torch.randn(3, 2, 3)


def _positions(use: Use) -> tuple[Tensor, Tensor]:
    """Inputs (n, T, a) and cotangents (n, c, T, g)."""
    (inputs,), cotangents = use.inputs, use.cotangents
    n, c = cotangents.shape[:2]
    return inputs.reshape(n, -1, inputs.shape[-1]), cotangents.reshape(n, c, -1, cotangents.shape[-1])
