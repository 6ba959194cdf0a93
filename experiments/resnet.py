"""The ResNets for CIFAR-10 whose trained weights are among the shared data (He et al. 2016, section 4.2)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data import find

__all__ = ["ResNet", "trained"]

_FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
_PREFIX = "module."


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self._stride, self._more = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, h, w) to (n, width, h / stride, w / stride)."""
        short = x[:, :, :: self._stride, :: self._stride]
        if self._more:
            short = F.pad(short, (0, 0, 0, 0, self._more, self._more))
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + short)


def _stage(blocks: int, before: int, width: int, stride: int) -> nn.Sequential:
    first = _Block(before, width, stride)
    return nn.Sequential(first, *[_Block(width, width, 1) for _ in range(blocks - 1)])


class ResNet(nn.Module):
    """6 · ``blocks`` + 2 layers of widths 16, 32 and 64, shortcuts without parameters.

    Args:
        blocks: In each of the three stages.
        classes: Outputs.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, 1)
        self.layer2 = _stage(blocks, 16, 32, 2)
        self.layer3 = _stage(blocks, 32, 64, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to logits (n, classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            out = stage(out)
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


def trained(folder: Path | None, depth: int = 20) -> ResNet:
    """ResNet-20 (91.7 % of CIFAR-10's test images) or ResNet-56, in evaluation mode.

    Raises:
        MissingData: There is no such file.
    """
    state = torch.load(find(folder, _FILES[depth]), map_location="cpu", weights_only=True)["state_dict"]
    net = ResNet((depth - 2) // 6)
    net.load_state_dict({name.removeprefix(_PREFIX): value for name, value in state.items()})
    return net.eval()
