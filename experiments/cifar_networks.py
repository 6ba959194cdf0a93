"""The networks of the paper's timings, for 32 by 32 colour images and ten classes; random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "alexnet", "preresnet", "wide_resnet"]


def alexnet() -> nn.Module:
    """Krizhevsky's five convolutions scaled down to 32 by 32, and one linear layer: 2.5 million parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


class _PreActivation(nn.Module):
    """Normalise, rectify, convolve, two or three times, and add the shortcut."""

    def __init__(self, before: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        shapes = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)] if bottleneck else [
            (before, width, 3, stride), (width, width, 3, 1)
        ]  # fmt: skip
        self.norms = nn.ModuleList([nn.BatchNorm2d(shape[0]) for shape in shapes])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(a, b, size, stride=step, padding=size // 2, bias=False) for a, b, size, step in shapes]
        )
        self.shortcut = None if before == after and stride == 1 else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, h, w) to (n, after, h / stride, w / stride)."""
        out = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            out = convolution(F.relu(norm(out)))
        short: Tensor = x if self.shortcut is None else self.shortcut(x)
        return out + short


def _residual(depth_of_stage: int, widths: tuple[int, int, int], *, bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    before = 16
    for stage, width in enumerate(widths):
        for place in range(depth_of_stage):
            stride = 2 if stage > 0 and place == 0 else 1
            layers.append(_PreActivation(before, width, stride, bottleneck=bottleneck))
            before = 4 * width if bottleneck else width
    head = [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    return nn.Sequential(*layers, *head)


def preresnet(depth: int) -> nn.Module:
    """He et al. 2016, Identity mappings in deep residual networks: with bottlenecks from 164 layers on."""
    bottleneck = depth >= 164
    return _residual((depth - 2) // (9 if bottleneck else 6), (16, 32, 64), bottleneck=bottleneck)


def wide_resnet(depth: int = 28, factor: int = 10) -> nn.Module:
    """Zagoruyko and Komodakis 2016, Wide residual networks: 36.5 million parameters."""
    return _residual((depth - 4) // 6, (16 * factor, 32 * factor, 64 * factor), bottleneck=False)


def _settled(make: Callable[[], nn.Module]) -> Callable[[torch.device], nn.Module]:
    def made(device: torch.device) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = make().to(device)
            with torch.no_grad():  # statistics of BatchNorm off their defaults
                net(torch.randn(32, 3, 32, 32).to(device))
            return net.eval()

    return made


NETWORKS: dict[str, Callable[[torch.device], nn.Module]] = {
    "AlexNet": _settled(alexnet),
    "PreResNet-56": _settled(lambda: preresnet(56)),
    "PreResNet-110": _settled(lambda: preresnet(110)),
    "PreResNet-164": _settled(lambda: preresnet(164)),
    "WideResNet-28x10": _settled(wide_resnet),
}
"""In evaluation mode on a device."""
