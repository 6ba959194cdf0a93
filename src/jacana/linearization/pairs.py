"""Pairs: what is summed over the parameters for every pair of examples, within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from jacana.linearization.features import Features
from jacana.linearization.linearization import Linearization
from jacana.linearization.memory import budget, require
from jacana.linearization.tiles import Placed, Room, partition, tiles
from jacana.networks import Examples

__all__ = ["Pairs"]

Sums = TypeVar("Sums")


@final
@dataclass(frozen=True)
class Pairs:
    """Every pair of an example of ``x1`` with one of ``x2``; of ``x1`` with itself each unordered pair once.

    Args:
        lin: the network.
        x1: n examples.
        x2: m examples, or None for ``x1`` itself.
        variances: rows of prior variances, one a parameter tensor; where all are zero its gradient is not needed.
        dtype: of the contraction.
        size: the bytes of what is summed.
        memory_budget: bytes for that, and everything that is held or computed on the way to it.
        progress: show a bar if it takes more than a second.
    """

    lin: Linearization
    x1: Examples
    x2: Examples | None
    variances: Sequence[Sequence[float]]
    dtype: torch.dtype
    size: int
    memory_budget: int | None = None
    progress: bool = False

    def sums(self, zeros: Callable[[], Sums], add: Callable[[Sums, Placed, Placed], None]) -> Sums:
        """What ``add`` has put into the ``zeros``, called once for every pair of blocks and group of parameters.

        What comes out of the network is looked at once, at the end, so that a device is not waited for block by block.
        If something was wrong with it, all is computed again with care: then a block's parameters may fall to autodiff.

        Raises:
            InsufficientMemory: the gradients of two examples do not fit beside the sums.
        """
        if self.lin.trusts(self.x1):
            flags: list[Tensor] = []
            found = self._sums(zeros, add, flags)
            if bool(torch.stack(flags).all()):
                return found
            del found
            self.lin.doubt(self.x1)
        return self._sums(zeros, add, None)

    def _sums(
        self, zeros: Callable[[], Sums], add: Callable[[Sums, Placed, Placed], None], flags: list[Tensor] | None
    ) -> Sums:
        lin = self.lin
        room = None if self.memory_budget is None else self.memory_budget - self.size
        # A layer's share alone needs the gradients of its own parameters alone.
        wanted = frozenset(place for place in range(len(lin.names)) if any(row[place] > 0.0 for row in self.variances))
        groups = self._groups(wanted, room)
        longer = self.x1 if self.x2 is None or len(self.x2) < len(self.x1) else self.x2  # a block holds no more
        found = zeros()
        for group in groups:
            places = wanted.intersection(place for some in group for place in some)

            def of(examples: Examples, places: frozenset[int] = places) -> Features:
                return lin.features(examples, self.dtype, places=places, flags=flags)

            def visit(one: Placed, other: Placed) -> None:
                add(found, one, other)

            tiles(of, visit, self.x1, self.x2, Room.of(lin, longer, group, room), progress=self.progress)
        return found

    def _groups(self, wanted: frozenset[int], room: int | None) -> list[list[tuple[int, ...]]]:
        """Shares of parameters whose gradients of two examples fit."""
        found = self.lin.findings(self.x1)
        groups = partition(found, wanted, budget(self.lin.device) if room is None else room)
        require(
            found.passing + 2 * max(sum(found.held[places] for places in group) for group in groups),
            self.lin.device,
            f"the gradients of two examples, {found.n_outputs} outputs each, beside {self.size / 2**30:.2f} GiB of "
            "kernels,",
            "use fewer outputs at once, or fewer parameters (parameters=).",
            room,
        )
        return groups
