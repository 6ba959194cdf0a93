"""Networks as people write them: small, trained-looking, and each with one thing that breaks a careless linearization.

A `Case` builds its network and its inputs from its name alone: the same ones in every test, whatever ran before.
"""

from __future__ import annotations

import zlib
from collections import UserDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests import oracles

ANY = frozenset({"forward", "forward, oneDNN off", "double backward", "rows"})
FORWARD = frozenset({"forward"})
RECURRENT = frozenset({"forward", "forward, oneDNN off"})
REVERSE = frozenset({"double backward", "rows"})
ROWS = frozenset({"rows"})


@dataclass(frozen=True)
class Case:
    """One network with inputs for it; `routes` are those that it may be linearized by."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, torch.dtype], Any]
    output: Callable[[Any], Tensor] | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    routes: frozenset[str] = ANY
    differentiable: bool = True  # central differences agree with reverse mode
    options: dict[str, Any] = field(default_factory=dict)

    def net(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(self.name.encode()))
            net = self.make().to(dtype)
            settle(net)
        return net.eval()

    def x(self, n: int, dtype: torch.dtype = torch.float64) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(self.name.encode()) + n)
            return self.inputs(n, dtype)

    @property
    def reading(self) -> dict[str, Any]:
        """How its outputs are read, for the oracle and for `jacana.linearize` alike."""
        return {"output": self.output, "forward": self.forward}

    def jacobian(self, net: nn.Module, x: Any) -> np.ndarray:
        return oracles.jacobian(net, x, **self.reading)

    def values(self, net: nn.Module, x: Any) -> np.ndarray:
        return oracles.outputs(net, x, **self.reading)


def settle(net: nn.Module) -> None:
    """Statistics, scales and offsets as training leaves them: none at its initial 0 or 1."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
            norms = nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm
            if isinstance(module, norms) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.3)


# Inputs --------------------------------------------------------------------------------------------


def vectors(d: int) -> Callable[[int, torch.dtype], Tensor]:
    return lambda n, dtype: torch.randn(n, d, dtype=torch.float64).to(dtype)


def images(channels: int, size: int) -> Callable[[int, torch.dtype], Tensor]:
    return lambda n, dtype: torch.randn(n, channels, size, size, dtype=torch.float64).to(dtype)


def sequences(length: int, d: int) -> Callable[[int, torch.dtype], Tensor]:
    return lambda n, dtype: torch.randn(n, length, d, dtype=torch.float64).to(dtype)


def tokens(length: int, words: int) -> Callable[[int, torch.dtype], Tensor]:
    def draw(n: int, dtype: torch.dtype) -> Tensor:
        drawn = torch.randint(0, words, (n, length))
        drawn[:, -1] = 0  # the padding word is met by every example
        return drawn

    return draw


# Plain networks ------------------------------------------------------------------------------------


def mlp(d: int = 3, hidden: int = 5, c: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, c))


def in_place() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.Hardtanh(inplace=True), nn.Linear(5, 2)
    )


class Flat(nn.Module):
    """Returns (n,), as regression networks do that squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(-1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.first(x))
        out = self.second(x)
        out += x  # in place
        return self.head(functional.gelu(out))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, stride=1),
        nn.BatchNorm2d(4, affine=False),
        nn.SiLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def odd_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="circular", dilation=1),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2, stride=2, output_padding=1),
        nn.PReLU(),
        nn.Flatten(2),
        nn.Conv1d(2, 2, 5, stride=5),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def odd_convolutions_settled() -> nn.Module:
    net = odd_convolutions()
    net(torch.randn(2, 2, 4, 4))
    return net


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ELU(inplace=True),
        nn.InstanceNorm1d(4, affine=True),
        nn.LayerNorm(5),
        nn.Flatten(),
        nn.Linear(20, 2),
    )


# Sequences -----------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.cell = cell(3, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if options.get("bidirectional") else 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mean(1))


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class MaskedTransformer(nn.Module):
    """A whole encoder over tokens with a padding mask: as keywords, one of them boolean."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4, padding_idx=0)
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(input_ids), src_key_padding_mask=padding)[:, 0])


def masked(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    words = torch.randint(1, 7, (n, 4))
    padding = torch.zeros(n, 4, dtype=torch.bool)
    padding[:, 3] = True
    padding[0, 2] = True
    return {"input_ids": words.masked_fill(padding, 0), "padding": padding}


class Padded(nn.Module):
    """Reverse mode gives the padding row no gradient; a careless forward mode does."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(6, 3, padding_idx=0), nn.Linear(3, 2)
        with torch.no_grad():
            self.words.weight[0] = 0.7

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(x)).mean(1))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(6, 3, mode="mean"), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(x)))


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres, self.head = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.exp(-torch.cdist(x, self.centres)))


# Weights that are shared, used twice, raw, frozen, never used --------------------------------------


class Tied(nn.Module):
    """The embedding is the head: an alias that `named_parameters` leaves out, cross terms between two operations."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.words(x).mean(1))))[:, :3]


class Transposed(nn.Module):
    """An auto-encoder with one matrix, by functional calls: W, then a view of W."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(4, 3) / 2), nn.Parameter(torch.randn(4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(functional.linear(x, self.W, self.b)), self.W.t())[
            :, :2
        ] + functional.linear(x, self.W[:2])


class Twice(nn.Module):
    """One module, two names, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(3, 3)
        self.again = self.step
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.step(torch.sin(self.step(x)))))))


class Functional(nn.Module):
    """The same operation by every name that it has: keywords, matmul, addmm, einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.a = nn.Parameter(torch.randn(4, 3) / 2), nn.Parameter(torch.randn(4) / 2)
        self.B, self.b = nn.Parameter(torch.randn(4, 4) / 2), nn.Parameter(torch.randn(4) / 2)
        self.C = nn.Parameter(torch.randn(2, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(functional.linear(bias=self.a, weight=self.A, input=x))
        x = torch.tanh(torch.addmm(self.b, x, self.B)) + torch.tanh(x @ self.B.T)
        return torch.einsum("na,ca->nc", x, self.C)


class Shared(nn.Module):
    """One bias for two layers, one weight for two layers, and a weight that is also read as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.third = nn.Linear(3, 3, bias=False)
        self.second.bias = self.first.bias
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return self.head(x) * (1 + self.head.weight.square().mean())


class TimeFirst(nn.Module):
    """Layers on (time, examples, features), with as many times as the tests have examples."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x.transpose(0, 1))).cumsum(0)[-1])


class Sorted(nn.Module):
    """Sorts the examples, as packing by length does, and puts what comes out in their order again."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return self.body(x[order])[order.argsort()]


def nearly_sorted(n: int, dtype: torch.dtype) -> Tensor:
    """The first example and the last are in place; two between them are not."""
    x = torch.randn(n, 3, dtype=torch.float64)
    x[:, 0] = torch.linspace(-1, 1, n) if n > 1 else 0.3
    if n > 3:
        x[1:3, 0] = x[1:3, 0].flip(0)
    return x.to(dtype)


class Chunked(nn.Module):
    """Runs its examples in pieces of two, the last piece first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(piece) for piece in reversed(x.split(2))][::-1])


class Raw(nn.Module):
    """Parameters outside any module's call, a scalar one, idle ones, frozen ones and buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.offset = nn.Parameter(torch.randn(2))
        self.idle = nn.Linear(3, 2)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(3, 2)
        self.head.bias.requires_grad_(False)
        self.register_buffer("shift", torch.randn(3))
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("fleeting", torch.randn(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(x + self.shift)[:, self.order] * self.fleeting)
        return self.scale * self.head(x) + self.offset**2


class Branching(nn.Module):
    """Python control flow on numbers read from parameters and from each example."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.4))
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.left(row) if row.sum().item() > 0 else self.right(row) for row in x]
        out = torch.stack(rows)
        return torch.tanh(out) * self.gate if self.gate.item() > 0 else out


# Autograd that only plain autograd understands -----------------------------------------------------


class _Cube(torch.autograd.Function):
    """The old style: a context in forward, no `setup_context`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class _Once(torch.autograd.Function):
    """A backward that cannot be differentiated again, as in many extensions: only rows are right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.cos(x) * gradient


class _Severed(torch.autograd.Function):
    """A backward that hides from autograd without a word: a second backward through it sees a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.cos(x) * gradient.detach() + 0 * gradient


class _Mistaken(torch.autograd.Function):
    """A forward-mode rule that disagrees with the backward: J is what reverse mode gives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.cos(x) * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 1.5 * torch.cos(x) * tangent


class _Straight(torch.autograd.Function):
    """The straight-through estimator: a step with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function.apply(self.first(x)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(3, 4), mlp(4, 4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.middle, torch.tanh(self.first(x)), use_reentrant=False))


class Reentrant(Checkpointed):
    """Reentrant checkpoints know `backward` only: neither forward mode nor `autograd.grad` goes through them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.middle, torch.tanh(self.first(x)), use_reentrant=True))


class Forces(nn.Module):
    """The gradient of an energy by autograd inside forward, as in molecular networks."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = mlp(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -slope


# What goes in and what comes out -------------------------------------------------------------------


@dataclass
class ModelOutput:
    """What a Hugging Face model returns."""

    logits: Tensor
    hidden: Tensor


class Rich(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        return self.wrap(self.head(hidden), hidden)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Bilinear(3, 2, 4), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(left, right)))


def two_as_tuple(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, dtype=torch.float64).to(dtype), torch.randn(n, 2, dtype=torch.float64).to(dtype)


def two_as_dict(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    left, right = two_as_tuple(n, dtype)
    return {"right": right, "left": left}


class BatchEncoding(UserDict):
    """A mapping that is no dict, as tokenizers return."""


class Spectral(nn.Module):
    """Complex numbers on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.filter, self.head = nn.Linear(4, 6), nn.Parameter(torch.randn(4)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.filter, n=6)))


class Hooked(nn.Module):
    """A forward hook that changes what comes out is part of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.body[0].register_forward_hook(_double)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return 2 * out


def first(out: Any) -> Any:
    return out[0]


def logits(out: Any) -> Any:
    return out.logits


def named_logits(out: Any) -> Any:
    return out["logits"]


def as_tuple(values: Tensor, hidden: Tensor) -> Any:
    return values, hidden


def as_dict(values: Tensor, hidden: Tensor) -> Any:
    return {"hidden": hidden, "logits": values}


def split(net: nn.Module, x: Tensor) -> Tensor:
    return net(x[:, :3], x[:, 3:])


CASES: tuple[Case, ...] = (
    Case("mlp", mlp, vectors(3), routes=FORWARD),
    Case("one output, (n, 1)", lambda: mlp(3, 4, 1), vectors(3), routes=FORWARD),
    Case("one output, (n,)", Flat, vectors(3), routes=FORWARD),
    Case("linear without bias", lambda: nn.Linear(3, 2, bias=False), vectors(3), routes=FORWARD),
    Case("residual", Residual, vectors(4), routes=FORWARD),
    Case("in-place ReLU after Linear", in_place, vectors(3), routes=FORWARD),
    Case("conv, BatchNorm, in-place ReLU", convolution, images(1, 5), routes=FORWARD),
    Case("grouped, circular, transposed conv", odd_convolutions_settled, images(2, 4)),
    Case("GroupNorm, InstanceNorm, LayerNorm", normalised, sequences(2, 5)),
    Case("LSTM", lambda: Recurrent(nn.LSTM), sequences(4, 3), routes=RECURRENT),
    Case(
        "LSTM, two layers, both ways",
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.3),
        sequences(3, 3),
        routes=RECURRENT,
    ),
    Case("GRU", lambda: Recurrent(nn.GRU), sequences(4, 3), routes=RECURRENT),
    Case("RNN", lambda: Recurrent(nn.RNN), sequences(4, 3), routes=RECURRENT),
    Case("scaled_dot_product_attention", Attention, sequences(3, 4)),
    Case("MultiheadAttention", Multihead, sequences(3, 4)),
    Case("TransformerEncoderLayer", Transformer, sequences(3, 4)),
    Case("TransformerEncoder with a padding mask", MaskedTransformer, masked, differentiable=False),
    Case("Embedding with padding_idx", Padded, tokens(4, 6), differentiable=False),
    Case("EmbeddingBag", Bag, tokens(4, 6)),
    Case("cdist", Distances, vectors(3)),
    Case("tied embedding and head", Tied, tokens(4, 5)),
    Case("W and its transpose", Transposed, vectors(3)),
    Case("a module called three times", Twice, vectors(3)),
    Case("linear by every name", Functional, vectors(3)),
    Case("shared weight, shared bias, weight read", Shared, vectors(3)),
    Case("time first inside", TimeFirst, sequences(4, 3)),
    Case("sorted inside", Sorted, nearly_sorted),
    Case("chunked inside", Chunked, vectors(3)),
    Case("raw, idle, frozen parameters, buffers", Raw, vectors(3)),
    Case("data-dependent branch", Branching, vectors(3)),
    Case("custom Function, old style", lambda: Custom(_Cube), vectors(3), routes=REVERSE),
    Case("custom Function, setup_context", lambda: Custom(_Square), vectors(3), routes=REVERSE),
    Case("custom Function, once differentiable", lambda: Custom(_Once), vectors(3), routes=ROWS),
    Case("custom Function, severed backward", lambda: Custom(_Severed), vectors(3), routes=ROWS),
    Case("custom Function, mistaken jvp", lambda: Custom(_Mistaken), vectors(3), routes=REVERSE),
    Case(
        "custom Function, straight through", lambda: Custom(_Straight), vectors(3), routes=REVERSE, differentiable=False
    ),
    Case("checkpoint", Checkpointed, vectors(3)),
    Case("forces", Forces, vectors(3)),
    Case("output of a dataclass", lambda: Rich(ModelOutput), vectors(3), output=logits),
    Case("output of a dict", lambda: Rich(as_dict), vectors(3), output=named_logits),
    Case("output of a tuple", lambda: Rich(as_tuple), vectors(3), output=first),
    Case("dict input", TwoInputs, two_as_dict),
    Case("BatchEncoding input", TwoInputs, lambda n, t: BatchEncoding(two_as_dict(n, t))),
    Case("tuple input", TwoInputs, two_as_tuple),
    Case("forward=", TwoInputs, vectors(5), forward=split),
    Case(
        "weight_norm",
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)),
        vectors(3),
    ),
    Case(
        "spectral_norm",
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)),
        vectors(3),
    ),
    Case("Fourier filter", Spectral, vectors(4)),
    Case("forward hook", Hooked, vectors(3)),
)

BY_NAME = {case.name: case for case in CASES}


def named(names: Iterable[str]) -> list[Case]:
    return [BY_NAME[name] for name in names]


class Correlated(nn.Module):
    """Works only where a matrix of its weights is positive definite."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
        self.last = nn.Linear(2, 1).double()

    def forward(self, x):
        return self.last(x @ torch.linalg.cholesky(torch.stack([self.a[:2], self.a[1:]])))
