"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Call, Rule, Use
from jacana.linearization.shares import Outer, Share

__all__ = ["Convolution"]


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
        stride, dilation = _each(stride, d), _each(dilation, d)
        if isinstance(padding, str):
            total = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "valid":
                total = [0] * d
            pads = [(full // 2, full - full // 2) for full in total]
        else:
            pads = [(pad, pad) for pad in _each(padding, d)]
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return Call(parameters, (input,), (0,), (tuple(weight.shape[2:]), stride, pads, dilation, groups))

    def formed(self, role: str, use: Use) -> Tensor:
        cotangents = use.cotangents.to(use.dtype)
        if role == "bias":
            return cotangents.flatten(4).sum((2, 4))
        patches, cotangents = _factors(use)
        groups = use.options[-1]
        n, c = cotangents.shape[:2]
        patches = torch.unflatten(patches.to(use.dtype), 2, (groups, -1))
        cotangents = torch.unflatten(cotangents.to(use.dtype), 3, (groups, -1))
        left = cotangents.permute(0, 3, 1, 4, 2).reshape(n * groups, -1, cotangents.shape[2])
        right = patches.permute(0, 2, 1, 3).reshape(n * groups, cotangents.shape[2], -1)
        formed = torch.bmm(left, right).view(n, groups, c, cotangents.shape[4], -1)
        return formed.transpose(1, 2).reshape(n, c, *use.shapes["weight"])

    def share(self, uses: Sequence[Use]) -> Share | None:
        use = uses[0]
        if len(uses) > 1 or use.options[-1] > 1:
            return None
        n, c = use.cotangents.shape[:2]
        if use.dtype.itemsize * c * use.shapes["weight"].numel() < _kept(use) // n:
            return None
        return Outer(use.places.get("weight"), use.places.get("bias"), *_factors(use), use.dtype)

    def example(self) -> tuple[nn.Module, Tensor]:
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2, padding="same"), nn.Tanh(),
            nn.Conv2d(6, 2, (1, 2), dilation=(1, 1), bias=False), nn.Flatten(),
        )  # fmt: skip
        return net, torch.randn(3, 2, 5, 5)


def _kept(use: Use) -> int:
    """The bytes of the factors: patches and cotangents."""
    size, (kernel, *_) = use.cotangents.element_size(), use.options
    positions = use.cotangents[0, 0, :, 0].numel()
    patch = use.inputs[0].shape[2]
    for width in kernel:
        patch *= width
    return use.cotangents.nbytes + size * len(use.cotangents) * positions * patch


def _factors(use: Use) -> tuple[Tensor, Tensor]:
    """Patches (n, T, channels · window) and cotangents (n, c, T, channels)."""
    kernel, stride, pads, dilation, _ = use.options
    (inputs,), cotangents = use.inputs, use.cotangents
    n, repeats = inputs.shape[:2]
    images = F.pad(inputs.flatten(0, 1), [pad for pair in reversed(pads) for pad in pair])
    windows = images
    for i, (width, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        windows = windows.unfold(2 + i, spread * (width - 1) + 1, step)[..., ::spread]
    d = len(kernel)
    patches = windows.permute(0, *range(2, 2 + d), 1, *range(2 + d, 2 + 2 * d))  # positions before channel and window
    patches = patches.reshape(n, -1, images.shape[1] * windows[0, 0].flatten(d)[(0,) * d].numel())
    c = cotangents.shape[1]
    if repeats == 1:
        return patches, cotangents[:, :, 0].flatten(3).transpose(2, 3)
    return patches, cotangents.flatten(4).transpose(3, 4).reshape(n, c, -1, cotangents.shape[3])


def _each(value: Any, d: int) -> tuple[int, ...]:
    return (value,) * d if isinstance(value, int) else tuple(value) * (d if len(value) == 1 else 1)
