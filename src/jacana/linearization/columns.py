"""Columns: several right-hand sides one after the other or at once, whichever was found to be faster."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import final

import torch
from torch import Tensor

from jacana.linearization.clock import seconds

__all__ = ["Columns"]

_AT_ONCE = 8
_FEW = 4
_TRIALS = 3
_HOPELESS, _CLEARLY = 1.5, 0.85
"""How much slower a pair at once may be for more to be tried, and how much faster they must be to be chosen."""


@final
class Columns:
    """Timed once for each kind of product, and remembered.

    Args:
        at_once: True or False settles the matter without timing.
    """

    def __init__(self, at_once: bool | None = None) -> None:
        self._settled = at_once
        self._found: dict[Hashable, bool] = {}

    def __call__(
        self,
        kind: Hashable,
        one: Callable[[Tensor], Tensor],
        several: Callable[[Tensor], Tensor] | None,
        matrix: Tensor,
        eps: float,
    ) -> Tensor:
        """Apply a linear map to every column, the last dimension of ``matrix``.

        Args:
            kind: what has the same answer.
            one: the map for one column (...,).
            several: the same for some columns (..., k), at once; None where there is no such way.
            matrix: (..., k).
            eps: of the dtype that the map is computed in.
        """
        k = matrix.shape[-1]
        if k == 1:
            return one(matrix[..., 0]).unsqueeze(-1)
        at_once = several is not None
        if at_once and several is not None:
            at_once = self._found.get(kind, False) if self._settled is None else self._settled
            if self._settled is None and kind not in self._found and k >= _FEW:
                at_once = self._found[kind] = _faster(one, several, matrix[..., :_AT_ONCE], eps)
        if at_once and several is not None:
            return torch.cat([several(part) for part in torch.split(matrix, _AT_ONCE, -1)], -1)
        return torch.stack([one(column) for column in matrix.unbind(-1)], -1)


def _faster(one: Callable[[Tensor], Tensor], several: Callable[[Tensor], Tensor], matrix: Tensor, eps: float) -> bool:
    """Whether several at once are right, and clearly faster than one after the other."""
    device = matrix.device
    first = one(matrix[..., 0])
    alone = min(seconds(lambda: one(matrix[..., 1]), device) for _ in range(_TRIALS))
    try:
        pair = several(matrix[..., :2])
        right = bool(((pair[..., 0] - first).abs() <= eps**0.5 * first.abs().amax()).all())
    except Exception:  # noqa: BLE001 - whatever torch raises where an operation has no batching rule
        return False
    if not right:
        return False
    if seconds(lambda: several(matrix[..., :2]), device) > _HOPELESS * 2 * alone:
        return False
    together = min(seconds(lambda: several(matrix), device) for _ in range(_TRIALS))
    return together < _CLEARLY * matrix.shape[-1] * alone
