"""The context in which a network can be differentiated in every mode, held under one lock.

The switches below are process-wide, and forward mode cannot run in two threads at once ("Nested forward mode AD"),
so every pass through a network takes the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable", "without_autocast"]

_LOCK = threading.RLock()


@contextmanager
def differentiable(*, fused_kernels: bool = True) -> Iterator[None]:
    """Hold the lock and set the switches under which a network has exact derivatives.

    Attention by its mathematics (the fused kernels have no forward mode), no transformer fast path (it has no
    derivative), no autocast (it silently costs 5e-3), gradients on and inference mode off whatever the caller set.

    Args:
        fused_kernels: False also turns oneDNN and cuDNN off: their LSTMs have no forward mode.
    """
    with ExitStack() as stack:
        stack.enter_context(_LOCK)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_autocast())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if not fused_kernels:
            for backend in (torch.backends.mkldnn, torch.backends.cudnn):  # their flags() contexts warn on some builds
                stack.callback(setattr, backend, "enabled", backend.enabled)
                backend.enabled = False  # type: ignore[attr-defined]
        yield


@contextmanager
def without_autocast() -> Iterator[None]:
    """Every operation in the dtype of what it is given, whatever autocast the caller set."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
