"""Standard normal numbers, from a generator that the caller may give."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption

__all__ = ["standard_normal"]


def standard_normal(*shape: int, generator: Any, device: torch.device) -> Float64[Tensor, "..."]:
    """Numbers drawn where ``generator`` lives, or by torch's default generator if it is None, on ``device``.

    Raises:
        InvalidOption: ``generator`` is none.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidOption(
            f"generator: got {type(generator).__name__}; pass a torch.Generator, e.g. torch.Generator().manual_seed(0)."
        )
    source = torch.device("cpu") if generator is None else generator.device
    return torch.randn(*shape, dtype=torch.float64, generator=generator, device=source).to(device)
