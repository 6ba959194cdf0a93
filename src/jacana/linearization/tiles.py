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


@dataclass(frozen=True)
class Room:
    """How many examples go through the network at once, and of how many the features are held beside these."""

    block: int
    slab: int

    @classmethod
    def of(cls, lin: Linearization, examples: Examples, group: Sequence[tuple[int, ...]], given: int | None) -> Room:
        """What fits in the bytes that are given, or by default in what is free, for the parameters in ``group``."""
        findings = lin.findings(examples)
        held = [max(1, findings.held[places]) for places in group]
        (_, block), *_ = lin.bounds(examples, room=None if given is None else given // 4)
        room = budget(lin.device) if given is None else given
        left = room - block * (findings.passing + sum(held)) - min(5 * WORK_BYTES, room // 2)
        return cls(block, max(1, left // sum(held)))


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

    A slab of the fewer is held, the others go past it block by block; then the next slab. With x2 None the one that
    comes later in the data is the first of a pair: below the diagonal of the kernel. What has been visited is gone
    before more is computed: nobody else may hold it.
    """
    if x2 is not None and len(x2) < len(x1):
        tiles(features, lambda one, other: visit(other, one), x2, x1, room, progress=progress)
        return
    slabs = _cut(0, len(x1), room.slab)
    passing = [_cut(stop, len(x1), room.block) if x2 is None else _cut(0, len(x2), room.block) for _, stop in slabs]
    blocks = sum(len(_cut(start, stop, room.block)) for start, stop in slabs) + sum(map(len, passing))
    with tqdm(total=blocks, desc="kernel", unit="block", delay=1.0, leave=False, disable=not progress) as bar:

        def computed(examples: Examples, span: tuple[int, int]) -> Features:
            found = features(examples[span[0] : span[1]])
            bar.update()
            return found

        def past(start: int, stop: int, others: list[tuple[int, int]]) -> None:
            pieces = gathered((computed(x1, span) for span in _cut(start, stop, room.block)), stop - start)
            starts = itertools.accumulate((piece.n for piece in pieces), initial=start)
            slab = list(zip(starts, pieces, strict=False))
            if x2 is None:
                for place, one in enumerate(slab):
                    for earlier in slab[: place + 1]:
                        visit(one, earlier)
            for span in others:
                block = (span[0], computed(x1 if x2 is None else x2, span))
                for one in slab:
                    visit(*((block, one) if x2 is None else (one, block)))
                del block

        for (start, stop), others in zip(slabs, passing, strict=True):
            past(start, stop, others)


def _cut(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(low, min(low + size, stop)) for low in range(start, stop, size)]
