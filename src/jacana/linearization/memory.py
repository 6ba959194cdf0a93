"""Memory: what is free, and what a computation may take of it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from jacana.errors import InsufficientMemory

__all__ = ["budget", "fits", "keep_freed", "require"]

_FRACTION = 0.25
_LARGEST = 2**25 - 2**16
"""Just below what glibc's allocator learns from at the most (M_MMAP_THRESHOLD, mallopt(3))."""


def budget(device: torch.device) -> int:
    """Bytes that one computation may hold by default: a quarter of what is free on ``device``."""
    return int(_FRACTION * _free(device))


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether as much is free."""
    return nbytes <= _free(device)


def require(nbytes: int, device: torch.device, what: str, cure: str, allowed: int | None = None) -> None:
    """Refuse, before anything is allocated, what does not fit in what is allowed, or in the memory that is free.

    Raises:
        InsufficientMemory: states the size, what is free or allowed, and the cure.
    """
    room, which = (_free(device), "are free") if allowed is None else (max(0, allowed), "of memory_budget are left")
    if nbytes > room:
        raise InsufficientMemory(f"{what} takes {nbytes / 2**30:.2g} GiB where {room / 2**30:.2g} GiB {which}; {cure}")


@functools.cache
def keep_freed() -> None:
    """Let the process keep the memory that intermediate results leave, for the next ones, where it would hand it back.

    glibc raises its limits to the largest block that was ever freed. Fresh pages cost as much as the arithmetic on
    them: repeated products are up to 1.4 times slower without this. The block is not touched, and costs nothing.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with Path("/proc/meminfo").open() as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
