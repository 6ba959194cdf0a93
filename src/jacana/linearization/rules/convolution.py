"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Call, Rule, Use
from jacana.linearization.shares import Outer, Share

__all__ = ["Convolution", "by_position", "each", "windows"]


class Convolution(Rule):
    """A linear map of the patch at each position: W: Σ_t g_t ⊗ patch_t, a group of channels apart; b: Σ_t g_t.

    Kept as factors where these are smaller than the gradients that they make.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (F.conv1d, F.conv2d, F.conv3d)

    def read(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Call | None:
        d = weight.ndim - 2
        if input.ndim != weight.ndim:
            return None
        stride, dilation = each(stride, d), each(dilation, d)
        if isinstance(padding, str):
            total = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "valid":
                total = [0] * d
            pads = [(full // 2, full - full // 2) for full in total]
        else:
            pads = [(pad, pad) for pad in each(padding, d)]
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return Call(parameters, (input,), (0,), (tuple(weight.shape[2:]), stride, pads, dilation, groups))

    def prepared(self, use: Use) -> tuple[Tensor, ...]:
        return (_patches(use),)

    def formed(self, role: str, use: Use) -> Tensor:
        cotangents = by_position(use.cotangents).to(use.working)
        if role == "bias":
            return cotangents.sum(3)
        groups = use.options[-1]
        n, c, _, positions = cotangents.shape
        left = torch.unflatten(cotangents, 2, (groups, -1)).transpose(1, 2).reshape(n * groups, -1, positions)
        right = torch.unflatten(use.inputs[0].to(use.working), 1, (groups, -1)).flatten(0, 1)
        formed = torch.bmm(left, right.mT).view(n, groups, c, -1)
        return formed.transpose(1, 2).reshape(n, c, *use.shapes["weight"])

    def kept(self, use: Use, c: int) -> int | None:
        if use.options[-1] > 1:
            return None
        outputs = use.cotangents[0, 0].numel()
        positions = outputs // use.shapes["weight"][0]
        return positions * use.shapes["weight"][1:].numel() + c * outputs

    def share(self, uses: Sequence[Use]) -> Share:
        places = (uses[0].places.get("weight"), uses[0].places.get("bias"))
        return Outer.joined(
            [Outer(*places, use.inputs[0].mT, by_position(use.cotangents).mT, use.dtype) for use in uses]
        )

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2, padding="same"), nn.Tanh(),
            nn.Conv2d(6, 2, (1, 2), dilation=(1, 1), bias=False), nn.Flatten(),
        )  # fmt: skip
        return net, torch.randn(3, 2, 5, 5)


def _patches(use: Use) -> Float[Tensor, "n a t"]:
    """What the window sees at each of T positions, channels before the places in the window."""
    kernel, stride, pads, dilation, _ = use.options
    (inputs,) = use.inputs
    n, repeats = inputs.shape[:2]
    seen = windows(inputs.flatten(0, 1), kernel, stride, pads, dilation)
    patches = seen.flatten(1, 1 + len(kernel)).flatten(2)
    return patches if repeats == 1 else torch.unflatten(patches, 0, (n, repeats)).transpose(1, 2).flatten(2)


def windows(
    images: Float[Tensor, "n a ..."],
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Float[Tensor, "n a ..."]:
    """(n, channels, *kernel, *positions): what a window sees at each position; a view of the padded images."""
    d = len(kernel)
    seen = F.pad(images, [pad for pair in reversed(pads) for pad in pair])
    for i, (width, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        seen = seen.unfold(2 + i, spread * (width - 1) + 1, step)[..., ::spread]
    return seen.permute(0, 1, *range(2 + d, 2 + 2 * d), *range(2, 2 + d))


def by_position(cotangents: Float[Tensor, "n c r g ..."]) -> Float[Tensor, "n c g t"]:
    """Cotangents of the channels at each position, those of repeated entries as more positions."""
    flat = cotangents.flatten(4)
    return flat[:, :, 0] if flat.shape[2] == 1 else flat.transpose(2, 3).flatten(3)


def each(value: Any, d: int) -> tuple[int, ...]:
    """One number for all dimensions, or one for each, as one for each."""
    return (value,) * d if isinstance(value, int) else tuple(value) * (d if len(value) == 1 else 1)
