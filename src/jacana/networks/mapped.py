"""Mapped: examples in files that NumPy maps into memory."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from jacana.networks.examples import Examples
from jacana.networks.parts import named_parts, refuse_misfits, to_tensor
from jacana.networks.source import Reread

__all__ = ["Mapped", "is_mapped"]

_SLICE_BYTES = 2**25


@final
class Mapped(Reread):
    """The examples of memory maps, read again slice by slice at every pass and never copied whole.

    Args:
        x: an array from ``numpy.memmap`` or ``numpy.load(..., mmap_mode="r")``, or a mapping or tuple with some; what
            is in memory beside them is copied.
        dtype: of the network's inputs.
        device: of the network.
        name: what errors call the data.

    Raises:
        InvalidData: entries that are no data, lengths that differ.
    """

    _giver: ClassVar[str] = "memory map"
    _cure: ClassVar[str] = "leave the file as it is while it is in use"

    def __init__(self, x: Any, dtype: torch.dtype, device: torch.device, name: str = "x") -> None:
        self._keys = tuple(x) if isinstance(x, Mapping) else ()
        self._single = not isinstance(x, Mapping | tuple)
        parts = {
            label: part if _in_file(part) else to_tensor(part, label).detach().clone()
            for label, part in named_parts(x, name).items()
        }
        refuse_misfits(parts)
        self._parts = tuple(parts.values())
        nbytes = sum(math.prod(part.shape[1:]) * max(part.itemsize, dtype.itemsize) for part in self._parts)
        # A power of two, so that mini-batches of the usual sizes fit in without a rest.
        self._rows = 1 << max(1, _SLICE_BYTES // nbytes).bit_length() - 1
        super().__init__(self._pass(), dtype, device, name)

    def _pass(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(self._parts[0]), self._rows):
            yield self._taken(slice(start, start + self._rows)), None

    def some(self, index: Int64[Tensor, " k"]) -> Examples:
        return self._examples(self._taken(index.cpu().numpy()))

    def _taken(self, index: slice | np.ndarray) -> Any:
        """Some of the examples, in the structure that they came in."""
        taken = tuple(part[index] for part in self._parts)
        return dict(zip(self._keys, taken, strict=True)) if self._keys else taken[0] if self._single else taken


def is_mapped(x: Any) -> bool:
    """Whether some of ``x`` is mapped from a file."""
    return any(map(_in_file, x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple) else [x]))


def _in_file(array: Any) -> bool:
    """Whether an array is a memory map, or a view of one."""
    if not isinstance(array, np.ndarray):
        return False
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
