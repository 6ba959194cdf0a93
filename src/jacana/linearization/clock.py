"""Clock: how long something takes, a device waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["seconds"]


def seconds(act: Callable[[], object], device: torch.device) -> float:
    """The time of one call."""
    _wait(device)
    start = time.perf_counter()
    act()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
