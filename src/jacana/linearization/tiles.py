"""Tiles: the pairs of sets of examples that a kernel is computed for, within a budget of memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from jacana.linearization.features import Features
from jacana.linearization.linearization import Linearization
from jacana.linearization.memory import budget
from jacana.linearization.probe import Findings
from jacana.linearization.shares.share import WORK_BYTES
from jacana.linearization.slab import gathered
from jacana.networks import Examples

__all__ = ["Placed", "Room", "partition", "tiles"]

Placed = tuple[int, Features]
"""Where some examples start, and their features."""

_ROWS_TOGETHER = 2048
"""Enough of them for a product of matrices at the machine's rate."""


@dataclass(frozen=True)
class Room:
    """How many examples go through the network at once, and of how many the features are held beside these.

    Attributes:
        block: examples in a pass.
        slab: examples held, at most.
        most: examples that pass a slab together, at most.
    """

    block: int
    slab: int
    most: int

    def together(self, held: int) -> int:
        """How many pass a slab of so many together, in whole blocks.

        What a slab holds as factors is formed for each of these anew.
        """
        return self.block * max(1, min(self.slab - held, self.most) // self.block)

    @classmethod
    def of(cls, lin: Linearization, examples: Examples, group: Sequence[tuple[int, ...]], given: int | None) -> Room:
        """What fits in the bytes that are given, or by default in what is free, for the parameters in ``group``."""
        findings = lin.findings(examples)
        held = [max(1, findings.held[places]) for places in group]
        (_, block), *_ = lin.bounds(examples, room=None if given is None else given // 4)
        room = budget(lin.device) if given is None else given
        left = room - block * (findings.passing + sum(held)) - min(5 * WORK_BYTES, room // 2)
        return cls(block, max(1, left // sum(held)), _ROWS_TOGETHER // findings.n_outputs)


def partition(findings: Findings, wanted: frozenset[int], room: int) -> list[list[tuple[int, ...]]]:
    """The shares that are wanted in as few groups as fit: of each, two examples are held while one goes through."""
    most = max(0, room - findings.passing) // 2
    groups: list[list[tuple[int, ...]]] = []
    filled = 0
    for places, nbytes in findings.held.items():
        if wanted.isdisjoint(places):
            continue
        if not groups or filled + nbytes > most:
            groups.append([])
            filled = 0
        groups[-1].append(places)
        filled += nbytes
    return groups


def tiles(
    features: Callable[[Examples], Features],
    visit: Callable[[Placed, Placed], None],
    x1: Examples,
    x2: Examples | None,
    room: Room,
    *,
    progress: bool,
) -> None:
    """Visit every pair of an example of ``x1`` with one of ``x2`` once; with x2 None, each unordered pair.

    A slab of the fewer is held, the others go past it, as many together as there is room for; then the next slab. With
    x2 None the one that comes later in the data is the first of a pair: below the diagonal of the kernel. What has been
    visited is gone before more is computed: nobody else may hold it.
    """
    if x2 is not None and len(x2) < len(x1):
        tiles(features, lambda one, other: visit(other, one), x2, x1, room, progress=progress)
        return
    slabs = _cut(0, len(x1), room.slab)
    others = [(x1, stop) if x2 is None else (x2, 0) for _, stop in slabs]
    spans = [*((x1, *slab) for slab in slabs), *((other, first, len(other)) for other, first in others)]
    blocks = sum(len(_cut(start, stop, room.block)) for _, start, stop in spans)
    with tqdm(total=blocks, desc="kernel", unit="block", delay=1.0, leave=False, disable=not progress) as bar:

        def computed(examples: Examples, span: tuple[int, int]) -> Features:
            found = features(examples[span[0] : span[1]])
            bar.update()
            return found

        def placed(examples: Examples, start: int, stop: int) -> list[Placed]:
            cut = _cut(start, stop, room.block)
            pieces = gathered((computed(examples, span) for span in cut), stop - start)
            starts = itertools.accumulate((piece.n for piece in pieces), initial=start)
            return list(zip(starts, pieces, strict=False))

        def past(slab: list[Placed], some: list[Placed]) -> None:
            for other, one in itertools.product(some, slab):
                visit(*((other, one) if x2 is None else (one, other)))

        def around(slab: list[Placed], other: Examples, first: int) -> None:
            held = sum(piece.n for _, piece in slab)
            if x2 is None:
                for place, one in enumerate(slab):
                    past(slab[: place + 1], [one])
            for start, stop in _cut(first, len(other), room.together(held)):
                past(slab, placed(other, start, stop))

        for (start, stop), (other, first) in zip(slabs, others, strict=True):
            around(placed(x1, start, stop), other, first)


def _cut(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(low, min(low + size, stop)) for low in range(start, stop, size)]
