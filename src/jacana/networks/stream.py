"""Stream: examples that a loader gives batch by batch, the same ones in the same order at every pass."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from jacana.errors import InvalidData
from jacana.networks.examples import Data, Examples, as_examples, joined, split_batch

__all__ = ["Stream", "as_source"]


@final
class Stream:
    """What operators run over where the data need not fit in memory: of what has passed, only checksums are kept.

    Args:
        loader: gives inputs, or pairs of which the targets are dropped; it is read again at every pass.
        dtype: of the network's inputs.
        device: of the network.
        name: what errors call the data.

    Raises:
        InvalidData: no batch, a batch that is no data, or another order at the start of a second pass.
    """

    def __init__(self, loader: DataLoader[Any], dtype: torch.dtype, device: torch.device, name: str = "x") -> None:
        self._loader, self._dtype, self._device, self.name = loader, dtype, device, name
        self._sums: list[tuple[int, int]] = []
        aside = _Aside()
        heads: list[Examples] = []
        for raw, _ in _pass(loader, aside):
            examples = self._examples(raw)
            heads = heads or [examples]
            self._sums.append((len(examples), checksum(examples)))
        if not heads:
            raise InvalidData(f"{name}: the DataLoader gave no batch; expected at least one example.")
        self.head: Examples = heads[0]
        again = next(_pass(loader, aside), None)
        if again is None or checksum(self._examples(again[0])) != self._sums[0][1]:
            raise self._other_examples(0)

    def __len__(self) -> int:
        return sum(n for n, _ in self._sums)

    def batches(self, size: int) -> Iterator[Examples]:
        """Mini-batches of one more pass: those of the loader, cut where they are larger than ``size``.

        Raises:
            InvalidData: when they are not those of the first pass.
        """
        for examples, _ in self._checked_pass():
            yield from examples.batches(size)

    def _checked_pass(self) -> Iterator[tuple[Examples, Any]]:
        """Batches of inputs, and their targets or None."""
        count = 0
        for raw, target in _pass(self._loader, _Aside()):
            examples = self._examples(raw)
            if count == len(self._sums) or (len(examples), checksum(examples)) != self._sums[count]:
                raise self._other_examples(count)
            count += 1
            yield examples, target
        if count < len(self._sums):
            raise self._other_examples(count)

    def targets(self) -> Tensor:
        """What the loader gives beside the inputs, in one tensor, from a pass whose inputs are checked.

        Raises:
            InvalidData: it gives inputs alone, or targets that do not go together.
        """
        parts = [target for _, target in self._checked_pass()]
        if any(target is None for target in parts):
            raise InvalidData(f"{self.name}: the DataLoader gives inputs alone; let it give pairs, or pass y.")
        try:
            return torch.cat([torch.as_tensor(target) for target in parts])
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidData(f"y: the DataLoader's targets cannot be put together: {error}.") from error

    def gathered(self) -> Examples:
        """All of them at once, in memory."""
        return joined(list(self.batches(len(self))))

    def _examples(self, raw: Any) -> Examples:
        return as_examples(raw, self._dtype, self._device, self.name)

    def _other_examples(self, batch: int) -> InvalidData:
        return InvalidData(
            f"{self.name}: the DataLoader gives other examples, or another order, on a later pass (batch {batch}), so "
            "results could not be matched with examples; use shuffle=False and no random augmentation."
        )


def as_source(x: Data | Stream, dtype: torch.dtype, device: torch.device, name: str = "x") -> Examples | Stream:
    """Data for an operator: a loader as a stream, anything else as examples in memory of their own.

    Raises:
        InvalidData: as :func:`~jacana.networks.examples.as_examples`.
    """
    if isinstance(x, Stream):
        return x
    return Stream(x, dtype, device, name) if isinstance(x, DataLoader) else as_examples(x, dtype, device, name).copied()


def checksum(examples: Examples) -> int:
    """One number for all entries."""
    total = 0
    for tensor in examples.tensors:
        entries = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(entries.numpy().data, total)
    return total


class _Aside:
    """A state of torch's generator for a loader to draw from, so that the user's own is left as it was."""

    def __init__(self) -> None:
        self._state = torch.random.get_rng_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Draw from it, and go on from there the next time."""
        outer = torch.random.get_rng_state()
        torch.random.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.random.get_rng_state()
            torch.random.set_rng_state(outer)


def _pass(loader: DataLoader[Any], aside: _Aside) -> Iterator[tuple[Any, Any]]:
    """The inputs of one pass, and the targets or None."""
    with aside.lent():
        batches = iter(loader)
    while True:
        with aside.lent():
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield split_batch(batch)
