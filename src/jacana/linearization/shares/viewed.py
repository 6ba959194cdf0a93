"""Viewed: parameters that operations use as views: slices, transposes, a packed weight in parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.shares.share import Share, add_product

__all__ = ["Viewed", "Window"]


@dataclass(frozen=True)
class Window:
    """A view of distinct entries of a contiguous parameter: its shape, strides, and where it starts."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, view: Tensor, parameter: Tensor) -> Window | None:
        """The window of a tensor in the same memory; None if it shows an entry twice or goes beyond the parameter."""
        start = int(view.storage_offset()) - int(parameter.storage_offset())
        window = cls(tuple(view.shape), tuple(view.stride()), start)
        return window if _distinct((window,), parameter.numel()) else None

    def cut(self, rows: Float[Tensor, "r q"]) -> Float[Tensor, "r ..."]:
        """The window into each of several rows that are laid out like the parameter; shares their memory."""
        offset = rows.storage_offset() + self.offset
        return rows.as_strided((len(rows), *self.shape), (rows.stride(0), *self.stride), offset)

    @staticmethod
    def disjoint(windows: Sequence[Window], numel: int) -> bool:
        """Whether no entry is in two of them."""
        return _distinct(tuple(windows), numel)


@functools.lru_cache(maxsize=256)
def _distinct(windows: tuple[Window, ...], numel: int) -> bool:
    """Whether every entry shown lies within the parameter and is shown once."""
    times = torch.zeros(numel, dtype=torch.int8)
    total = 0
    for window in windows:
        last = window.offset + sum((size - 1) * step for size, step in zip(window.shape, window.stride, strict=True))
        if window.offset < 0 or last >= numel or 0 in window.shape:
            return False
        times.as_strided(window.shape, window.stride, window.offset).fill_(1)
        total += math.prod(window.shape)
    return int(times.sum(dtype=torch.int64)) == total


class Viewed(Share):
    """The shares of views, each with source numbers of its own, as a share of the parameters that they view.

    What is in no view has no gradient; the views are disjoint, so that their shares add.
    """

    ways: ClassVar[tuple[str, ...]] = ("in parts",)

    def __init__(
        self, parts: Sequence[Share], sources: Mapping[int, tuple[int, Window | None]], sizes: Mapping[int, int]
    ) -> None:
        super().__init__(sorted(sizes), parts[0].n, parts[0].c, parts[0].dtype)
        self.parts, self.sources, self._sizes = tuple(parts), dict(sources), dict(sizes)

    def dense(self, place: int) -> Float[Tensor, "nc q"]:
        rows = torch.zeros(self.n * self.c, self._sizes[place], dtype=self.dtype, device=self.parts[0].held()[0].device)
        for part in self.parts:
            for source in part.places:
                leaf, window = self.sources[source]
                if leaf == place:
                    self._put(rows, window, part.dense(source))
        return rows

    def accumulate(
        self,
        kernel: Float[Tensor, "nc mc"],
        other: Share,
        variances: Sequence[float],
        *,
        symmetric: bool = False,
        way: str | None = None,
    ) -> None:
        # Sources are numbered pass by pass: another block may have given a number to another window.
        if isinstance(other, Viewed) and other.views == self.views:
            for ours, theirs in zip(self.parts, other.parts, strict=True):
                ours.accumulate(kernel, theirs, self._lifted(variances), symmetric=symmetric)
            return
        for place in self.places:
            if variances[place] > 0.0:
                add_product(kernel, self.dense(place), other.dense(place), variances[place], symmetric=symmetric)

    def arithmetic(self, n: int, m: int) -> dict[str, float]:
        return {"in parts": sum(min(part.arithmetic(n, m).values()) for part in self.parts)}

    def blocks(self, variances: Sequence[float]) -> Float[Tensor, "n c c"]:
        return torch.stack([part.blocks(self._lifted(variances)) for part in self.parts]).sum(0)

    def of_output(self, k: int) -> Viewed:
        return Viewed([part.of_output(k) for part in self.parts], self.sources, self._sizes)

    def folded(self) -> Viewed:
        return Viewed([part.folded() for part in self.parts], self.sources, self._sizes)

    def mixed(self, weights: Float[Tensor, "n c r"]) -> Viewed:
        return Viewed([part.mixed(weights) for part in self.parts], self.sources, self._sizes)

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> dict[int, Float[Tensor, "q k"]]:
        k = cotangents.shape[1]
        pulled = {place: cotangents.new_zeros(k, size) for place, size in self._sizes.items()}
        for part in self.parts:
            for source, piece in part.pull(cotangents).items():
                leaf, window = self.sources[source]
                self._put(pulled[leaf], window, piece.T)
        return {place: rows.T for place, rows in pulled.items()}

    def push(self, tangents: Mapping[int, Float[Tensor, "q k"]]) -> Float[Tensor, "nc k"]:
        rows = {place: tangent.T.contiguous() for place, tangent in tangents.items()}
        products = []
        for part in self.parts:
            pieces = {}
            for source in part.places:
                leaf, window = self.sources[source]
                pieces[source] = (rows[leaf] if window is None else window.cut(rows[leaf]).flatten(1)).T
            products.append(part.push(pieces))
        return torch.stack(products).sum(0)

    def held(self) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.held())

    @property
    def views(self) -> list[list[tuple[int, int, Window | None]]]:
        """The sources of each part, and what they show of which parameter."""
        return [[(source, *self.sources[source]) for source in part.places] for part in self.parts]

    @property
    def layout(self) -> tuple[object, ...]:
        return (*super().layout, self.views, [part.layout for part in self.parts])

    def holding(self, tensors: Sequence[Tensor]) -> Viewed:
        remaining = iter(tensors)
        parts = [part.holding([next(remaining) for _ in part.held()]) for part in self.parts]
        return Viewed(parts, self.sources, self._sizes)

    def _lifted(self, variances: Sequence[float]) -> list[float]:
        lifted = [0.0] * (1 + max(self.sources))
        for source, (leaf, _) in self.sources.items():
            lifted[source] = variances[leaf]
        return lifted

    @staticmethod
    def _put(rows: Float[Tensor, "r q"], window: Window | None, values: Float[Tensor, "r w"]) -> None:
        if window is None:
            rows.copy_(values)
        else:
            window.cut(rows).copy_(values.view(len(values), *window.shape))
