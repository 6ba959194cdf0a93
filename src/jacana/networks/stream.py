"""Stream: examples that a loader gives batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from jacana.errors import InvalidData
from jacana.networks.examples import Data, Examples, as_examples, split_batch
from jacana.networks.mapped import Mapped, is_mapped
from jacana.networks.source import Reread, Source, checksum

__all__ = ["Stream", "as_source"]


@final
class Stream(Reread):
    """The examples of a loader, which is read again at every pass.

    Args:
        loader: gives inputs, or pairs of which the targets are dropped.
        dtype: of the network's inputs.
        device: of the network.
        name: what errors call the data.

    Raises:
        InvalidData: no batch, a batch that is no data, or another order at the start of a second pass.
    """

    _giver: ClassVar[str] = "DataLoader"
    _cure: ClassVar[str] = "use shuffle=False and no random augmentation"

    def __init__(self, loader: DataLoader[Any], dtype: torch.dtype, device: torch.device, name: str = "x") -> None:
        self._loader = loader
        aside = _Aside()
        super().__init__(_read(loader, aside), dtype, device, name)
        again = next(_read(loader, aside), None)
        if again is None or checksum(self._examples(again[0])) != self._sums[0][1]:
            raise self._other_examples(0)

    def _pass(self) -> Iterator[tuple[Any, Any]]:
        return _read(self._loader, _Aside())

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


def as_source(x: Data | Source, dtype: torch.dtype, device: torch.device, name: str = "x") -> Examples | Source:
    """Data for an operator: a loader or what is mapped from files as a source, the rest in memory of its own.

    Raises:
        InvalidData: as :func:`~jacana.networks.examples.as_examples`.
    """
    if isinstance(x, Source):
        return x
    with torch.inference_mode(False):  # what is made here must be fit for a backward pass
        if isinstance(x, DataLoader):
            return Stream(x, dtype, device, name)
        return Mapped(x, dtype, device, name) if is_mapped(x) else as_examples(x, dtype, device, name).copied()


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


def _read(loader: DataLoader[Any], aside: _Aside) -> Iterator[tuple[Any, Any]]:
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
