"""Slab: the features of many examples, gathered block by block."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from jacana.linearization.features import Features

__all__ = ["gathered"]


class _Slab:
    """Room for ``n`` examples, made after the first block; what comes is copied into it, so that it is held once."""

    def __init__(self, first: Features, n: int) -> None:
        self._pattern = first
        self._tensors = [[tensor.new_empty(n, *tensor.shape[1:]) for tensor in s.held()] for s in first.shares]
        self._filled = 0

    def takes(self, block: Features) -> bool:
        """Whether the features of a block are made like those of the first: a network may branch."""
        return [share.layout for share in block.shares] == [share.layout for share in self._pattern.shares]

    def add(self, block: Features) -> None:
        """Copy a block after what there is."""
        stop = self._filled + block.n
        for tensors, share in zip(self._tensors, block.shares, strict=True):
            for tensor, held in zip(tensors, share.held(), strict=True):
                tensor[self._filled : stop] = held
        self._filled = stop

    def features(self) -> Features:
        """What has been gathered."""
        pairs = zip(self._pattern.shares, self._tensors, strict=True)
        shares = [share.holding(self._filled_of(tensors)) for share, tensors in pairs]
        return Features(self._filled, self._pattern.c, shares)

    def _filled_of(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor[: self._filled] for tensor in tensors]


def gathered(blocks: Iterable[Features], n: int) -> list[Features]:
    """The features of ``n`` examples that come in blocks, in as few pieces as their structure allows: mostly one."""
    pieces: list[Features] = []
    slab: _Slab | None = None
    left = n
    for block in blocks:
        if slab is None and block.n == left:
            return [*pieces, block]
        if slab is not None and not slab.takes(block):
            pieces.append(slab.features())
            slab = None
        if slab is None:
            slab = _Slab(block, left)
        slab.add(block)
        left -= block.n
    return [*pieces, slab.features()] if slab is not None else pieces
