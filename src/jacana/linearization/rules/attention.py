"""Multi-head attention, which torch runs as one operation, written out in linear maps and scaled dot products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Decomposition

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Decomposition):
    """softmax(Q Kᵀ/√d + mask) V for each head between packed linear maps, of one sequence with itself.

    Vaswani et al. 2017 (arXiv 1706.03762), equation 1. Attention to another sequence, separate projections, extra keys
    and averaged weights are not written out: their parameters go through autodiff.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.multi_head_attention_forward,)

    def covers(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        *_: Any,
        training: bool = True,
        need_weights: bool = True,
        use_separate_proj_weight: bool = False,
        static_k: Tensor | None = None,
        static_v: Tensor | None = None,
        **__: Any,
    ) -> bool:
        extras = (bias_k, bias_v, static_k, static_v)
        plain = query is key and key is value and query.ndim == 3 and in_proj_weight is not None
        return (
            plain
            and not (training or need_weights or use_separate_proj_weight or add_zero_attn)
            and all(extra is None for extra in extras)
        )

    def write_out(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor,
        in_proj_bias: Tensor | None,
        bias_k: None,
        bias_v: None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        length, n, width = query.shape
        packed = F.linear(query, in_proj_weight, in_proj_bias)
        heads = packed.view(length, n, 3, num_heads, width // num_heads).permute(2, 1, 3, 0, 4)
        mask = None if attn_mask is None else _additive(attn_mask, query)
        if mask is not None and mask.ndim == 3:  # a mask for each example and head
            mask = mask.view(n, num_heads, length, length)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        out = F.linear(mixed.permute(2, 0, 1, 3).reshape(length, n, width), out_proj_weight, out_proj_bias)
        return out, None

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Attention(), torch.randn(3, 3, 4)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """True where attention is forbidden, as what is added to its logits."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x).mean(1))
        return out
