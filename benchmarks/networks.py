"""The networks whose Gram matrices are timed, and a count of the arithmetic that each needs at the least."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Case", "cases", "operations", "plain_attention", "resnet"]


def perceptron() -> nn.Module:
    """784-512-512-10, relu: 669,706 parameters."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).eval()


def cnn() -> nn.Module:
    """Two convolutions and three linear layers on 3x32x32: 943,426 parameters."""
    head = [nn.Flatten(), nn.Linear(400, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)]
    first, second = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), *head).eval()


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A: every other pixel, zeros for new channels)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.more = width // before, width - before
        self.conv1 = nn.Conv2d(before, width, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, h, w) to (n, width, h / stride, w / stride)."""
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + short)


def resnet() -> nn.Module:
    """ResNet-20 for CIFAR-10 (He et al. 2015, section 4.2): 269,722 parameters, BatchNorm with fixed statistics."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(before, width) for before, width in itertools.pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net(torch.randn(32, 3, 32, 32))  # in training mode: the statistics of BatchNorm move off their defaults
    return net.eval()


class Transformer(nn.Module):
    """An encoder of texts with one output."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, longest: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=False
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, length) tokens to (n, 1)."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        out: Tensor = self.head(self.encoder(x).mean(dim=1))
        return out


def transformer(
    vocabulary: int = 30_522, width: int = 384, depth: int = 6, heads: int = 12, longest: int = 512
) -> nn.Module:
    """Six layers of width 384: 22,564,225 parameters, of which 11.7 million embed tokens."""
    return Transformer(vocabulary, width, depth, heads, longest).eval()


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention in separate operations: vmap and jacrev cannot go through the fused ones."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear map that is applied at several positions of one example.

    Attributes:
        a: Size that goes in; for a convolution, that of a patch.
        g: Size that comes out.
        positions: How often one example applies it.
        convolution: Whether only the formed product counts.
        products: Further multiplications of one example, without parameters: those of attention.
    """

    a: int
    g: int
    positions: int
    convolution: bool = False
    products: int = 0

    @property
    def multiplications(self) -> int:
        """Those of one example, forward."""
        return self.positions * self.a * self.g + self.products

    def contraction(self, n: int, c: int) -> float:
        """Floating-point operations of its share of the symmetric Gram of n examples with c outputs.

        Factored, inner products of what goes in times inner products of the gradients of what comes out; formed, the
        gradient of the weight of each row and then their inner products.
        """
        rows, a, g, t = n * c, float(self.a), float(self.g), float(self.positions)
        formed = 2 * rows * t * a * g + rows**2 * a * g
        return formed if self.convolution else min(n**2 * t**2 * a + rows**2 * t**2 * g, formed)


def layers(net: nn.Module, x: Tensor) -> list[Layer]:
    """The linear maps of a network, in the order in which it applies them to one example."""
    found: list[Layer] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Linear):
            found.append(Layer(module.in_features, module.out_features, output.numel() // module.out_features))
        elif isinstance(module, nn.Conv2d):
            patch = module.weight[0].numel()
            found.append(Layer(patch, module.out_channels, output.numel() // module.out_channels, convolution=True))
        elif isinstance(module, nn.MultiheadAttention):
            width, t = module.embed_dim, inputs[0].shape[1]
            found.append(Layer(width, 3 * width, t, products=2 * t * t * width))
            found.append(Layer(width, width, t))

    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    handles = [module.register_forward_hook(see) for module in net.modules() if isinstance(module, kinds)]
    try:
        with torch.no_grad(), plain_attention():
            net(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def operations(net: nn.Module, x: Tensor, c: int) -> dict[str, float]:
    """Floating-point operations of a good structured algorithm: of the network's passes, and of the contraction.

    One forward pass an example, and one backward pass through the activations an output, which costs the same but for
    the first layer (unless an embedding comes before it). Normalizations, activations, biases and embeddings count
    nothing: this is a floor.
    """
    maps, n = layers(net, x), len(x)
    forward = 2.0 * sum(layer.multiplications for layer in maps)
    embedded = any(isinstance(module, nn.Embedding) for module in net.modules())
    backward = forward - (0.0 if embedded else 2.0 * maps[0].multiplications)
    return {
        "network": n * forward + n * c * backward,
        "contraction": sum(layer.contraction(n, c) for layer in maps),
    }


def images(n: int) -> Tensor:
    """Noise in the shape of CIFAR-10."""
    return torch.randn(n, 3, 32, 32)


def digits(n: int) -> Tensor:
    """Noise in the shape of MNIST, flat."""
    return torch.randn(n, 784)


def texts(vocabulary: int, length: int) -> Callable[[int], Tensor]:
    """Random texts."""
    return lambda n: torch.randint(vocabulary, (n, length))


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        title: Its name.
        network: Makes the network.
        data: Makes n examples.
        n: Number of examples.
        chunks: Pairs (examples, outputs) that vmap(jacrev) may go through at a time; None stands for all outputs.
        timed: Examples with which vmap(jacrev) is timed; where fewer than ``n``, the rest is extrapolated.
        rival: Whether vmap(jacrev) runs at all.
        outputs: Outputs of the network.
    """

    title: str
    network: Callable[[], nn.Module]
    data: Callable[[int], Tensor]
    n: int
    chunks: Sequence[tuple[int, int | None]]
    timed: int | None = None
    rival: bool = True
    outputs: int = 10


def cases(*, quick: bool, long: bool) -> list[Case]:
    """The rows of the table; the quick ones are tiny and show nothing."""
    wide: tuple[tuple[int, int | None], ...] = ((10, None), (25, None), (50, None), (50, 1))
    few: tuple[tuple[int, int | None], ...] = ((2, None), (2, 1))
    if quick:
        small = {"vocabulary": 50, "width": 24, "depth": 2, "heads": 4, "longest": 8}
        return [
            Case("MLP 784-512-512-10", perceptron, digits, 4, few),
            Case("MLP 784-512-512-10", perceptron, digits, 6, few, timed=4),
            Case("ResNet-20", resnet, images, 4, few),
            Case("CNN", cnn, images, 4, few, timed=2),
            Case("Transformer", lambda: transformer(**small), texts(50, 6), 4, few, outputs=1),
        ]
    narrow: tuple[tuple[int, int | None], ...] = ((1, None), (4, None), (16, None))
    tokens = texts(30_522, 32)
    found = [
        Case("MLP 784-512-512-10", perceptron, digits, 300, wide),
        Case("MLP 784-512-512-10", perceptron, digits, 1_000, wide, timed=100),
        Case("ResNet-20", resnet, images, 50, wide),
        Case("ResNet-20", resnet, images, 200, wide),
        Case("CNN", cnn, images, 500, wide, timed=100),
        Case("Transformer", transformer, tokens, 64, narrow, outputs=1),
    ]
    if long:
        found.append(Case("Transformer", transformer, tokens, 1_000, narrow, rival=False, outputs=1))
    return found
