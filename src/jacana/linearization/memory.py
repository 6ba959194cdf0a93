"""Memory: what is free, and what a computation may take of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from jacana.errors import InsufficientMemory

__all__ = ["budget", "require"]

_FRACTION = 0.25


def budget(device: torch.device) -> int:
    """Bytes that one computation may hold by default: a quarter of what is free on ``device``."""
    return int(_FRACTION * _free(device))


def require(nbytes: int, device: torch.device, what: str, cure: str) -> None:
    """Refuse, before anything is allocated, what does not fit in the memory that is free.

    Raises:
        InsufficientMemory: states the size, what is free, and the cure.
    """
    free = _free(device)
    if nbytes > free:
        raise InsufficientMemory(f"{what} takes {nbytes / 2**30:.1f} GiB where {free / 2**30:.1f} GiB are free; {cure}")


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with Path("/proc/meminfo").open() as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
