"""Tokens: the gradient of an embedding is one row a token, Σ_t 1[token t] ⊗ g_t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jacana.linearization.shares.share import ELEMENTWISE, WORK_BYTES, Share, add_factored, add_product, within_work

__all__ = ["Tokens"]


class Tokens(Share):
    """An embedding (v, d) read at T positions, from token ids (n, T) and cotangents G (n, c, T, d).

        J J'ᵀ between (n, k) and (m, l)  =  Σ_{t,s} 1[id[n,t] = id'[m,s]] (G[n,k,t]·G'[m,l,s])

    Contracted factored (all positions with all positions), or formed over the tokens that occur on both sides.
    """

    ways: ClassVar[tuple[str, ...]] = ("factored", "formed")

    def __init__(
        self,
        place: int,
        rows: int,
        ids: Int[Tensor, "n t"],
        cotangents: Float[Tensor, "n c t d"],
        dtype: torch.dtype,
    ) -> None:
        super().__init__((place,), cotangents.shape[0], cotangents.shape[1], dtype)
        self.rows, self.ids, self.cotangents = rows, ids.long(), cotangents

    @classmethod
    def joined(cls, uses: Sequence[Tokens]) -> Tokens:
        """Several uses of the same embedding are more positions."""
        first = uses[0]
        if len(uses) == 1:
            return first
        ids = torch.cat([use.ids for use in uses], dim=1)
        cotangents = torch.cat([use.cotangents for use in uses], dim=2)
        return cls(first.places[0], first.rows, ids, cotangents, first.dtype)

    def dense(self, place: int) -> Float[Tensor, "nc q"]:
        return self.scattered(self.ids, self.rows)

    def accumulate(
        self,
        kernel: Float[Tensor, "nc mc"],
        other: Share,
        variances: Sequence[float],
        *,
        symmetric: bool = False,
        way: str | None = None,
    ) -> None:
        (place,) = self.places
        variance = variances[place]
        if variance == 0.0:
            return
        if not isinstance(other, Tokens):
            add_product(kernel, self.dense(place), other.dense(place), variance, symmetric=symmetric)
            return
        counts = self._counts(self.n, other.n, other.ids.shape[1])
        if (way or min(counts, key=counts.__getitem__)) == "factored":
            self._factored(kernel, other, variance, symmetric)
            return
        # Only tokens that occur here can meet: each has a slot. How many they are, the device is not asked.
        slots = min(self.rows, self.ids.numel())
        ordered, order = self.ids.flatten().sort()
        slot = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).long()]).cumsum(0)
        ours = torch.empty_like(slot).scatter_(0, order, slot).view_as(self.ids)
        theirs = ours
        if other is not self:
            found = torch.searchsorted(ordered, other.ids).clamp(max=len(ordered) - 1)
            theirs = torch.where(ordered[found] == other.ids, slot[found], slots)
        d = self.cotangents.shape[3]
        size = max(1, min(d, WORK_BYTES // ((self.n + other.n) * self.c * (slots + 1) * self.dtype.itemsize)))
        for start in range(0, d, size):
            left = self.scattered(ours, slots + 1, start, start + size)
            right = left if other is self else other.scattered(theirs, slots + 1, start, start + size)
            if other is not self:  # the last row gathers tokens that only the other side has
                right.view(other.n * self.c, slots + 1, -1)[:, -1] = 0.0
            add_product(kernel, left, right, variance, symmetric=symmetric)

    def _factored(self, kernel: Tensor, other: Tokens, variance: float, symmetric: bool) -> None:
        def alike(rows: slice, columns: slice) -> Tensor:
            same = self.ids[rows, :, None, None] == other.ids[None, None, columns]
            return variance * same.to(self.dtype)

        cotangents = within_work(self.cotangents, self.dtype)
        other_cotangents = cotangents if other is self else within_work(other.cotangents, self.dtype)
        add_factored(kernel, cotangents, other_cotangents, alike, symmetric=symmetric)

    def arithmetic(self, n: int, m: int) -> dict[str, float]:
        return self._counts(n, m, self.ids.shape[1])

    def _counts(self, n: int, m: int, s: int) -> dict[str, float]:
        c, t, d = self.c, self.ids.shape[1], self.cotangents.shape[3]
        met = min(self.rows, n * t)  # at the most
        factored = (2.0 * d + ELEMENTWISE) * n * m * c * c * t * s
        formed = 2.0 * n * m * c * c * (met + 1) * d + ELEMENTWISE * (n + m) * c * (met + 1) * d
        return {"factored": factored, "formed": formed}

    def blocks(self, variances: Sequence[float]) -> Float[Tensor, "n c c"]:
        out = torch.empty(self.n, self.c, self.c, dtype=self.dtype, device=self.cotangents.device)
        for i in range(self.n):
            own = self.cotangents[i].to(self.dtype)
            same = (self.ids[i][:, None] == self.ids[i]).to(self.dtype)
            out[i] = own.flatten(1) @ (same @ own).flatten(1).T
        return variances[self.places[0]] * out

    def of_output(self, k: int) -> Tokens:
        return Tokens(self.places[0], self.rows, self.ids, self.cotangents[:, k : k + 1], self.dtype)

    def folded(self) -> Tokens:
        folded = self.cotangents.transpose(1, 2).flatten(2).unsqueeze(1)
        return Tokens(self.places[0], self.rows, self.ids, folded, self.dtype)

    def mixed(self, weights: Float[Tensor, "n c r"]) -> Tokens:
        mixed = weights.to(self.dtype).mT @ self.cotangents.to(self.dtype).flatten(2)
        cotangents = mixed.view(*mixed.shape[:2], *self.cotangents.shape[2:])
        return Tokens(self.places[0], self.rows, self.ids, cotangents, self.dtype)

    def squares(self) -> dict[int, Float[Tensor, " q"]]:
        total = torch.zeros(self.rows, self.cotangents.shape[3], dtype=self.dtype, device=self.cotangents.device)
        for ids, cotangents in zip(self.ids, self.cotangents.to(self.dtype), strict=True):
            same = (ids[:, None] == ids).to(self.dtype)  # a token that comes several times has all of them
            squares = (same @ cotangents).square().sum(0) / same.sum(1, keepdim=True)
            total.index_add_(0, ids, squares)
        return {self.places[0]: total.flatten()}

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> dict[int, Float[Tensor, "q k"]]:
        own = self.cotangents.to(self.dtype)
        columns = []
        for column in cotangents.unbind(1):
            weighted = torch.einsum("nc,nctd->ntd", column.view(self.n, self.c), own).flatten(0, 1)
            total = weighted.new_zeros(self.rows, weighted.shape[1])
            columns.append(total.index_add_(0, self.ids.flatten(), weighted).flatten())
        empty = cotangents.new_zeros(self.rows * self.cotangents.shape[3], 0)
        return {self.places[0]: torch.stack(columns, 1) if columns else empty}

    def push(self, tangents: Mapping[int, Float[Tensor, "q k"]]) -> Float[Tensor, "nc k"]:
        own = self.cotangents.to(self.dtype)
        (tangent,) = tangents.values()
        columns = [
            torch.einsum("nctd,ntd->nc", own, column.view(self.rows, -1)[self.ids]).flatten()
            for column in tangent.unbind(1)
        ]
        return torch.stack(columns, 1) if columns else tangent.new_zeros(self.n * self.c, 0)

    def held(self) -> tuple[Tensor, ...]:
        return (self.cotangents, self.ids)

    def holding(self, tensors: Sequence[Tensor]) -> Tokens:
        return Tokens(self.places[0], self.rows, tensors[1], tensors[0], self.dtype)

    def scattered(self, ids: Tensor, rows: int, start: int = 0, stop: int | None = None) -> Float[Tensor, "nc q"]:
        cotangents = self.cotangents[..., start:stop].to(self.dtype)
        total = cotangents.new_zeros(self.n, self.c, rows, cotangents.shape[3])
        index = ids[:, None, :, None].expand_as(cotangents)
        return total.scatter_add_(2, index, cotangents).view(self.n * self.c, -1)
