"""Transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.convolution import by_position, each, windows
from jacana.linearization.rules.rule import Call, Rule, Use

__all__ = ["TransposedConvolution"]


class TransposedConvolution(Rule):
    """A convolution's gradient with inputs and cotangents in each other's place: W: Σ_t a_t ⊗ patch_t(g); b: Σ_t g_t.

    Dumoulin and Visin 2016 (arXiv 1603.07285), chapter 4.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (
        F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    )  # fmt: skip

    def read(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Call | None:
        d = weight.ndim - 2
        if input.ndim != weight.ndim:
            return None
        pads = [(pad, pad) for pad in each(padding, d)]
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        options = (tuple(weight.shape[2:]), each(stride, d), pads, each(dilation, d), groups)
        return Call(parameters, (input,), (0,), options)

    def formed(self, role: str, use: Use) -> Tensor:
        cotangents = use.cotangents.to(use.working)
        if role == "bias":
            return by_position(cotangents).sum(3)
        *window, groups = use.options
        inputs = use.inputs[0].to(use.working)
        seen = windows(cotangents.flatten(0, 2), *window)
        for i, size in enumerate(reversed(inputs.shape[3:])):
            seen = seen.narrow(-1 - i, 0, size)  # padding of the output may make room for windows of no input
        patches = seen.reshape(*cotangents.shape[:3], groups, -1, inputs[0, 0, 0].numel())
        values = torch.unflatten(inputs.flatten(3), 2, (groups, -1))
        formed = torch.einsum("nrgat,ncrgbt->ncgab", values, patches)
        return formed.reshape(*cotangents.shape[:2], *use.shapes["weight"])

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), nn.Tanh(),
            nn.ConvTranspose2d(4, 6, (1, 2), groups=2, dilation=(1, 2)), nn.Tanh(),
            nn.ConvTranspose2d(6, 1, 2, stride=(1, 3), bias=False), nn.Flatten(), nn.Linear(115, 2),
        )  # fmt: skip
        return net, torch.randn(3, 2, 2, 3)
