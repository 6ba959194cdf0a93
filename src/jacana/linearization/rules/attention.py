"""Multi-head attention, which torch runs as one operation, written out in linear maps and scaled dot products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Decomposition

__all__ = ["DotProductAttention", "MultiheadAttention"]


class MultiheadAttention(Decomposition):
    """softmax(Q Kᵀ/√d + mask) V for each head between linear maps, packed or apart.

    Vaswani et al. 2017 (arXiv 1706.03762), equation 1. Extra keys are not written out: their parameters go through
    autodiff.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.multi_head_attention_forward,)

    def read(
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
        static_k: Tensor | None = None,
        static_v: Tensor | None = None,
        **__: Any,
    ) -> bool | None:
        extras = (bias_k, bias_v, static_k, static_v)
        plain = query.ndim == 3 and not (training or add_zero_attn) and all(extra is None for extra in extras)
        return True if plain else None

    def write_out(
        self,
        form: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: None,
        bias_v: None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        *,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        use_separate_proj_weight: bool = False,
        q_proj_weight: Tensor | None = None,
        k_proj_weight: Tensor | None = None,
        v_proj_weight: Tensor | None = None,
        average_attn_weights: bool = True,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        n, width = query.shape[1:]
        if in_proj_weight is not None and not use_separate_proj_weight and query is key and key is value:
            projected = F.linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
        else:
            packed = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
            weights = packed or in_proj_weight.chunk(3)  # type: ignore[union-attr]
            biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
            projected = tuple(F.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))
        heads = [torch.unflatten(part, 2, (num_heads, -1)).permute(1, 2, 0, 3) for part in projected]
        masks = []
        if attn_mask is not None:
            mask = _additive(attn_mask, query)
            # (L, S), or one for each example and head.
            masks.append(torch.unflatten(mask, 0, (n, num_heads)) if mask.ndim == 3 else mask)
        if key_padding_mask is not None:
            masks.append(_additive(key_padding_mask, query)[:, None, None, :])
        total = sum(masks[1:], masks[0]) if masks else None
        if need_weights:
            logits = heads[0] @ heads[1].mT / math.sqrt(width // num_heads)
            attention = (logits if total is None else logits + total).softmax(dim=-1)
            mixed = attention @ heads[2]
        else:  # as torch does it: where all keys of a query are masked, the result is 0 rather than NaN
            mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=total)
        out = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
        if not need_weights:
            return out, None
        return out, attention.mean(1) if average_attn_weights else attention

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Attention(), torch.randn(3, 3, 4)


class DotProductAttention(Decomposition):
    """softmax(Q Kᵀ/√d + M) V with a learned M, such as a table of relative positions."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.scaled_dot_product_attention,)

    def read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> bool | None:
        return True if isinstance(attn_mask, nn.Parameter) and not (is_causal or dropout_p) else None

    def write_out(
        self,
        form: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
        logits = query @ key.mT * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
        return (logits + attn_mask).softmax(dim=-1) @ value

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Biased(), torch.randn(3, 4, 5)


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


class _Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias, self.head = nn.Parameter(torch.randn(2, 4, 4)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unsqueeze(1).expand(-1, 2, -1, -1)
        out: Tensor = self.head(F.scaled_dot_product_attention(heads, heads, heads, attn_mask=self.bias).mean((1, 2)))
        return out
