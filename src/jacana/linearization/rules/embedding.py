"""Embeddings: rows of a table, by token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Call, Rule, Use
from jacana.linearization.shares import Share, Tokens

__all__ = ["Embedding"]


class Embedding(Rule):
    """Σ_t 1[token t] ⊗ g_t; the padding token has no gradient."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.embedding,)

    def read(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Call | None:
        if input.ndim < 1 or max_norm is not None or scale_grad_by_freq:
            return None
        padding = -1 if padding_idx is None else padding_idx % len(weight)
        return Call({"weight": weight}, (input,), range(input.ndim), padding)

    def formed(self, role: str, use: Use) -> Tensor:
        tokens = self._tokens(use, use.working)
        (place,) = tokens.places
        return tokens.dense(place).view(*use.cotangents.shape[:2], *use.shapes["weight"])

    def kept(self, use: Use, c: int) -> int | None:
        return use.inputs[0][0].numel() * (1 + c * use.cotangents.shape[-1])

    def share(self, uses: Sequence[Use]) -> Share:
        return Tokens.joined([self._tokens(use, use.dtype) for use in uses])

    def _tokens(self, use: Use, dtype: torch.dtype) -> Tokens:
        (ids,), cotangents = use.inputs, use.cotangents
        n, c = cotangents.shape[:2]
        ids, cotangents = ids.reshape(n, -1), cotangents.reshape(n, c, -1, cotangents.shape[-1])
        cotangents = cotangents.masked_fill((ids == use.options)[:, None, :, None], 0.0)
        return Tokens(use.places["weight"], use.shapes["weight"][0], ids, cotangents, dtype)

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2))
        return net, torch.randint(0, 7, (3, 5))
