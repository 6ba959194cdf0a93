"""The rectifier with a learned slope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Call, Rule, Use, unbroadcast

__all__ = ["PReLU"]


class PReLU(Rule):
    """y = max(x, 0) + w min(x, 0), one w a channel or for all: the sum of g min(x, 0) over what w is repeated along.

    He et al. 2015 (arXiv 1502.01852), equation 1.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.prelu, Tensor.prelu)

    def read(self, input: Tensor, weight: Tensor) -> Call | None:
        if isinstance(input, nn.Parameter) or (weight.numel() > 1 and input.ndim < 2):
            return None
        shape = [1] * input.ndim
        if weight.numel() > 1:
            shape[1] = weight.numel()
        dims = [dim for dim, size in enumerate(shape) if size == 1]
        return Call({"weight": weight}, (input.clamp(max=0.0),), dims, tuple(shape))

    def formed(self, role: str, use: Use) -> Tensor:
        (slope,) = use.inputs
        cotangents = use.cotangents.to(use.working) * slope.to(use.working).unsqueeze(1)
        summed = unbroadcast(cotangents, use.options)
        return summed.reshape(*summed.shape[:2], *use.shapes[role])

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(nn.PReLU(3), nn.Flatten(), nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, 2))
        return net, torch.randn(3, 3, 2)
