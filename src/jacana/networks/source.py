"""Source: examples that need not fit in memory, the same ones in the same order at every pass."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from jacana.errors import InvalidData
from jacana.networks.examples import Examples, as_examples, joined

__all__ = ["Reread", "Source", "checksum"]

_HEAD = 256


class Source(ABC):
    """What operators run over where the data need not fit in memory."""

    @property
    @abstractmethod
    def head(self) -> Examples:
        """The first examples, in memory."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, size: int) -> Iterator[Examples]:
        """Mini-batches of one more pass, of ``size`` examples or fewer.

        Raises:
            InvalidData: when they are not those of the first pass.
        """

    def some(self, index: Int64[Tensor, " k"]) -> Examples:
        """The examples with these numbers, which ascend."""
        found, start = [], 0
        for piece in self.batches(len(self)):
            stop = start + len(piece)
            within = index[(index >= start) & (index < stop)]
            if len(within):
                found.append(piece.some(within - start))
            start = stop
        return joined(found)

    def gathered(self) -> Examples:
        """All of them at once, in memory."""
        return joined(list(self.batches(len(self))))

    def targets(self) -> Tensor:
        """What comes beside the inputs, in one tensor.

        Raises:
            InvalidData: there are none.
        """
        raise InvalidData("y: got None; pass the targets, one for each example, or a DataLoader of (input, target).")


class Reread(Source):
    """Examples that are read again piece by piece at every pass: of what has passed, only checksums are kept.

    Args:
        first: the pieces of the first pass, each inputs with targets or None.
        dtype: of the network's inputs.
        device: of the network.
        name: what errors call the data.

    Raises:
        InvalidData: nothing in it, or a piece that is no data.
    """

    _giver: ClassVar[str]
    """What gives the examples, in the words of an error."""
    _cure: ClassVar[str]
    """What makes it give the same ones each time."""

    def __init__(
        self, first: Iterator[tuple[Any, Any]], dtype: torch.dtype, device: torch.device, name: str = "x"
    ) -> None:
        self._dtype, self._device, self.name = dtype, device, name
        self._sums: list[tuple[int, int]] = []
        start = 0
        for raw, _ in first:
            examples = self._examples(raw, start)
            if not self._sums:
                self._head = examples[:_HEAD].copied()
            self._sums.append((len(examples), checksum(examples)))
            start += len(examples)
        if not self._sums:
            raise InvalidData(f"{name}: the {self._giver} gave no batch; expected at least one example.")

    @property
    def head(self) -> Examples:
        return self._head

    def __len__(self) -> int:
        return sum(n for n, _ in self._sums)

    @abstractmethod
    def _pass(self) -> Iterator[tuple[Any, Any]]:
        """One more pass: inputs as they are given piece by piece, and targets or None."""

    def batches(self, size: int) -> Iterator[Examples]:
        for examples, _ in self._checked_pass():
            yield from examples.batches(size)

    def _checked_pass(self) -> Iterator[tuple[Examples, Any]]:
        """Pieces of inputs, and their targets or None."""
        count = start = 0
        for raw, target in self._pass():
            examples = self._examples(raw, start)
            if count == len(self._sums) or (len(examples), checksum(examples)) != self._sums[count]:
                raise self._other_examples(count)
            count, start = count + 1, start + len(examples)
            yield examples, target
        if count < len(self._sums):
            raise self._other_examples(count)

    def _examples(self, raw: Any, start: int = 0) -> Examples:
        return as_examples(raw, self._dtype, self._device, self.name, start=start)

    def _other_examples(self, batch: int) -> InvalidData:
        return InvalidData(
            f"{self.name}: the {self._giver} gives other examples, or another order, on a later pass (batch {batch}), "
            f"so results could not be matched with examples; {self._cure}."
        )


def checksum(examples: Examples) -> int:
    """One number for all entries."""
    total = 0
    for tensor in examples.tensors:
        entries = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(entries.numpy().data, total)
    return total
