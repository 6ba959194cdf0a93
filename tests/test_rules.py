"""Networks as real code writes them, operation by operation: every parameter by rules, and the oracle's Jacobian."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint

import jacana
from jacana.linearization.rules import recurrent
from tests import oracles, zoo

DOUBLE, SINGLE = torch.float64, torch.float32


def normal(*shape):
    return nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1] if shape else 1))


# Transformers --------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """GPT-2's linear layer, with inputs first in its weight."""

    def __init__(self, before, after):
        super().__init__()
        self.weight, self.bias = normal(before, after), normal(after)

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class GPT2(nn.Module):
    """Two tables of embeddings, causal attention, a head that is the first table."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.ln_1, self.ln_2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.c_attn, self.c_proj, self.c_fc, self.c_out = Conv1D(4, 12), Conv1D(4, 4), Conv1D(4, 6), Conv1D(6, 4)
        self.register_buffer("bias", torch.ones(5, 5).tril().bool())

    def forward(self, ids):
        t = ids.shape[1]
        x = self.wte(ids) + self.wpe(torch.arange(t).unsqueeze(0))
        q, k, v = (part.unflatten(2, (2, 2)).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(4, 2))
        logits = torch.where(self.bias[:t, :t], q @ k.mT / math.sqrt(2), torch.finfo(x.dtype).min)
        x = x + self.c_proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(*x.shape))
        x = x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))
        return (x[:, -1] @ self.wte.weight.T)[:, :3]


class ViT(nn.Module):
    """A convolution makes patches, a class token comes first, positions are added twice: once in place."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.cls, self.pos, self.more = normal(1, 1, 4), normal(1, 5, 4), normal(1, 9, 4)
        self.layer, self.head = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = x + self.pos
        x += self.more[:, : x.shape[1]]
        return self.head(self.layer(x)[:, 0])


class BERT(nn.Module):
    """Words, positions and token types; positions from a buffer, types from one that is expanded."""

    def __init__(self):
        super().__init__()
        self.words, self.positions, self.types = (
            nn.Embedding(7, 4, padding_idx=0),
            nn.Embedding(9, 4),
            nn.Embedding(2, 4),
        )
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)
        self.register_buffer("ids", torch.arange(9).unsqueeze(0), persistent=False)
        self.register_buffer("type_ids", torch.zeros(1, 9, dtype=torch.long), persistent=False)

    def forward(self, ids):
        n, t = ids.shape
        x = self.words(ids) + self.types(self.type_ids[:, :t].expand(n, t))
        x += self.positions(self.ids[:, :t])
        return self.head(torch.tanh(self.norm(x)).mean(1))


class RelativeBias(nn.Module):
    """Swin: a table of biases, gathered by relative position and added to the logits."""

    def __init__(self):
        super().__init__()
        self.qkv, self.table, self.head = nn.Linear(4, 12), normal(7, 2), nn.Linear(4, 2)
        offsets = torch.arange(4)
        self.register_buffer("index", offsets[:, None] - offsets[None] + 3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1).contiguous()
        logits = q @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return self.head((logits.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


class PerHead(nn.Module):
    """A projection for each head by einsum, joined by another."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = normal(2, 4, 3), normal(4, 2, 3), normal(2, 4, 3)
        self.out, self.head = normal(2, 3, 4), nn.Linear(4, 2)

    def forward(self, x):
        q, k = torch.einsum("btd,hdk->bhtk", x, self.q), torch.einsum("btd,dhk->bhtk", x, self.k)
        v = x.unsqueeze(1) @ self.v
        mixed = torch.einsum("bhts,bhsk->bhtk", (q @ k.mT).softmax(-1), v)
        return self.head(torch.einsum("bhtk,hkd->btd", mixed, self.out).mean(1))


class CrossAttention(nn.Module):
    """Learned queries attend to the inputs, of other widths; need_weights by default."""

    def __init__(self):
        super().__init__()
        self.queries = normal(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True)
        self.value, self.head = nn.Linear(3, 5), nn.Linear(4, 2)

    def forward(self, x):
        mixed, weights = self.attention(self.queries.repeat(len(x), 1, 1), x, torch.tanh(self.value(x)))
        return self.head(mixed.mean(1)) + weights.square().sum((1, 2))[:, None]


class Decoder(nn.Module):
    """Self-attention and cross attention, both with packed weights."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x, torch.sin(3 * x[:, :3])).mean(1))


class MaskToken(nn.Module):
    """A masked autoencoder: a token in place of what is masked, by where, by product and by repetition."""

    def __init__(self):
        super().__init__()
        self.token, self.other, self.decoder = normal(1, 1, 4), normal(4), normal(1, 1, 4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("mask", torch.tensor([True, False, True, False]))

    def forward(self, x):
        x = torch.where(x[..., :1] > 0, x, self.token)
        hidden = self.mask.view(1, -1, 1).to(x.dtype)
        x = x * (1.0 - hidden) + self.other * hidden
        x = torch.cat([x, self.decoder.repeat(len(x), 2, 1)], 1)
        return self.head(torch.sin(x).cumsum(1).square().mean(1))


# Weights that are computed -------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    def forward(self, x):
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, padding=1)


def computed():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(1, 3, 2)), nn.Tanh(), Standardised(3, 4, 3), nn.Tanh(),
        parametrizations.spectral_norm(nn.Conv2d(4, 4, 2)), nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(16, 4)), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.Tanh(), parametrizations.orthogonal(nn.Linear(4, 2)),
    )  # fmt: skip


class Adapters(nn.Module):
    """Low rank, three ways: two products, a product of the weights, a sum with the frozen weight."""

    def __init__(self):
        super().__init__()
        self.A, self.B, self.C, self.D = normal(4, 2), normal(2, 4), normal(4, 1), normal(1, 4)
        self.base, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.base.requires_grad_(False)

    def forward(self, x):
        x = torch.tanh(self.base(x) + 0.5 * (x @ self.A @ self.B) + x @ (self.C @ self.D))
        x = torch.tanh(F.linear(x, self.base.weight + (self.A @ self.B).T, self.base.bias))
        return self.head(x.mean(1))


class Gated(nn.Module):
    """Gates of every kind, layer scale, temperature, learned means and deviations."""

    def __init__(self):
        super().__init__()
        self.up, self.head, self.slope = nn.Linear(4, 8), nn.Linear(4, 2), nn.PReLU(4)
        self.gate, self.scale, self.temperature = normal(4), normal(4), nn.Parameter(torch.tensor(0.7))
        self.mean, self.deviation = normal(4), nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x):
        x = (x - self.mean) / self.deviation
        a, b = self.up(x).chunk(2, -1)
        x = x + self.scale * (F.silu(a) * b)
        x = torch.sigmoid(self.gate) * torch.tanh(x) + (1 - torch.sigmoid(self.gate)) * F.glu(self.up(x))
        x -= self.mean
        x /= self.temperature
        x *= self.temperature.exp()
        x = self.slope(x.mT).mT / self.temperature
        return self.head((self.deviation - x).mean(1))


class PositionalMLP(nn.Module):
    """Positions from a network of its own on a grid."""

    def __init__(self):
        super().__init__()
        self.mlp, self.mix, self.head = zoo.mlp(2, 3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("grid", torch.randn(4, 2))

    def forward(self, x):
        x = torch.tanh(self.mix(x + self.mlp(self.grid)))
        return self.head(x.mean(1))


class Parts(nn.Module):
    """One weight in two parts, one bias in two parts, and a table as a matrix."""

    def __init__(self):
        super().__init__()
        self.W, self.b, self.table = normal(6, 4), normal(6), nn.Embedding(4, 4)

    def forward(self, x):
        first, second = F.linear(x, self.W[:2], self.b[:2]), F.linear(x, self.W[2:], self.b[2:])
        return (first.sin() + second[..., :2] * second[..., 2:]).mean(1) + (x @ self.table.weight[:, :2]).mean(1)


# Products and contractions -------------------------------------------------------------------------


class Products(nn.Module):
    """A parameter on either side of a product: vector, matrix, stack."""

    def __init__(self):
        super().__init__()
        self.v, self.W, self.mix, self.t = normal(4), normal(4, 4), normal(4, 4), normal(4)
        self.stack, self.left = normal(1, 2, 4, 3), normal(2, 5, 4)
        self.bilinear = nn.Bilinear(4, 3, 4)

    def forward(self, x):
        n = len(x)
        y = torch.tanh(torch.matmul(x, self.W)) + torch.mm(x.flatten(0, 1), self.W).view_as(x)
        y = torch.tanh(self.mix @ y) + torch.bmm(self.mix.expand(n, -1, -1), y)
        z = self.left @ (y.unsqueeze(1) @ self.stack)
        y = self.bilinear(y, z.sum((1, 2))[:, None].expand(-1, y.shape[1], -1).contiguous())
        return torch.stack([(y @ self.v).sum(1), (self.t @ y).prod(1), (self.W @ y.mT).sum((1, 2))], 1)


class Contractions(nn.Module):
    """What einsum can say with two operands."""

    def __init__(self):
        super().__init__()
        self.W, self.H, self.v, self.p = normal(4, 3), normal(4, 3, 2), normal(3), normal(4, 4)

    def forward(self, x):
        a = torch.tanh(torch.einsum("...a,ah", x, self.W) + torch.einsum("ah,nta->nth", self.W, x))
        a = a + torch.einsum("nth,h->nth", a, self.v) + torch.einsum("nth,k->ntk", a, self.v)
        b = torch.einsum("n t h, t h e -> n e", a, self.H) + torch.einsum("nth,the->nte", a, self.H).sin().sum(1)
        c = torch.einsum("nta,sb->nab", x, self.p)[:, 0, :2] + torch.einsum("nta,ta->n", x, self.p)[:, None]
        d = (
            torch.tensordot(x, self.p, dims=2)[:, None]
            * torch.tensordot(self.W, x.sin(), dims=([0], [2])).sum((0, 2))[:, None]
        )
        return b + c + d + torch.einsum(x, [0, 1, 2], self.W, [2, 3], [0, 3])[:, :2]


class Upsampling(nn.Module):
    """Transposed convolutions in one, two and three dimensions."""

    def __init__(self):
        super().__init__()
        self.one = nn.ConvTranspose1d(2, 4, 3, stride=2, padding=2, output_padding=1, groups=2)
        self.two = nn.ConvTranspose2d(2, 3, (2, 3), stride=(1, 2), dilation=(3, 1), output_padding=(2, 1))
        self.three, self.head = nn.ConvTranspose3d(3, 2, 2, padding=1, bias=False), nn.LazyLinear(2)
        self(torch.randn(2, 2, 4))

    def forward(self, x):
        x = torch.tanh(self.one(x)).unflatten(1, (2, 2))
        x = torch.tanh(self.two(x)).unsqueeze(2).expand(-1, -1, 2, -1, -1)
        frames = x.transpose(1, 2).flatten(0, 1)  # two of each example
        x = self.three(x).flatten(1) + self.two(frames[:, :2]).unflatten(0, (-1, 2)).sum((1, 2, 3, 4))[:, None]
        return self.head(x)


# Recurrence ----------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind, *, last=False, **options):
        super().__init__()
        self.layer, self.last = kind(4, 3, **options), last
        self.head = nn.LazyLinear(2)
        self(torch.randn(2, 4, 4))

    def forward(self, x):
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        out, state = self.layer(x)
        h = state[1] if isinstance(state, tuple) else state
        out = out if self.layer.batch_first else out.transpose(0, 1)
        return self.head(torch.cat([out.square().mean(1), h.transpose(0, 1).flatten(1)], 1))


class Initial(nn.Module):
    """Learned initial states, expanded in the place where torch has the examples."""

    def __init__(self):
        super().__init__()
        self.layer, self.gru = nn.LSTM(4, 3, 2, batch_first=True), nn.GRU(3, 3, batch_first=True)
        self.h, self.c, self.g = normal(2, 1, 3), normal(2, 1, 3), normal(1, 1, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        n = len(x)
        out, _ = self.layer(x, (self.h.expand(-1, n, -1).contiguous(), self.c.repeat(1, n, 1)))
        return self.head(self.gru(out, self.g.expand(1, n, 3))[0].mean(1))


class Cells(nn.Module):
    """Cells in a loop, with a learned first state."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(4, 3), nn.GRUCell(3, 3)
        self.tanh, self.relu = nn.RNNCell(3, 3, bias=False), nn.RNNCell(3, 3, nonlinearity="relu")
        self.h, self.head = normal(3), nn.Linear(3, 2)

    def forward(self, x):
        h = g = self.h.expand(len(x), -1)
        c, u, v = torch.zeros_like(h), None, x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            h, c = self.lstm(step, (h, c))
            g, u = self.gru(h, g), self.tanh(g, u)
            v = self.relu(g + u, v)
        return self.head(torch.stack([h, g, u, v]).sin().sum(0))


# Hostile -------------------------------------------------------------------------------------------


class InputAndWeight(nn.Module):
    """A parameter goes through itself, and prototypes are repeated for every example."""

    def __init__(self):
        super().__init__()
        self.W, self.q = normal(4, 4), normal(2, 4)

    def forward(self, x):
        own = F.linear(self.W, self.W.tanh())
        q = F.linear(self.q.expand(len(x), -1, -1), self.W)
        return torch.tanh(F.linear(x, own) @ self.W + (q @ x.mT).mT @ self.q).mean(1)[:, :2]


class SettledTwice(nn.Module):
    """One computed tensor as weight, as factor, as term and as number."""

    def __init__(self):
        super().__init__()
        self.W = normal(4, 4)

    def forward(self, x):
        S = torch.tanh(self.W)
        x = F.linear(x, S) * S[0] + S[:, 1] - S.mT[2] / (2 + S.mean())
        return (torch.einsum("nta,ta->na", x.sin(), S) @ S)[:, :2]


class ViewAndWhole(nn.Module):
    """A parameter, its transpose, overlapping parts of it and one of them twice."""

    def __init__(self):
        super().__init__()
        self.W = normal(4, 4)

    def forward(self, x):
        x = torch.sin(F.linear(x, self.W) @ self.W)
        x = x + F.linear(x[..., :3], self.W[:, :3]) + F.linear(x[..., 1:], self.W[:, 1:]) + self.W[1]
        return (x * self.W.diagonal() + self.W.flatten()[4:8]).mean(1)[:, :2]


class BuffersInPlace(nn.Module):
    """The forward counts its calls, writes a parameter into a buffer and reads it before and after."""

    def __init__(self):
        super().__init__()
        self.p, self.head = normal(4), nn.Linear(4, 2)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("shift", torch.randn(4))
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.count += 1
        x = x + self.shift
        self.shift.mul_(2.0).add_(self.p)
        x = torch.sin(x + self.shift) * self.count
        self.seen.copy_(x.detach().mean((0, 1)))
        return self.head(x.mean(1))


class SettledInPlace(nn.Module):
    """A computed tensor is used, changed in place, and used again."""

    def __init__(self):
        super().__init__()
        self.p, self.q, self.head = normal(4), normal(4), nn.Linear(4, 2)

    def forward(self, x):
        s = self.p * 2.0
        x = x + s
        s -= self.q
        x = torch.sin(x + s)
        s += x.detach().mean() * 0.0  # written into by examples
        return self.head((x + s).mean(1))


class WrittenInto(nn.Module):
    """Repeated parameters that are written into, and fresh memory that parameters are written into."""

    def __init__(self):
        super().__init__()
        self.h, self.p, self.scale, self.head = normal(1, 4), normal(4), normal(4), nn.Linear(4, 2)

    def forward(self, x):
        n = len(x)
        h = self.h.repeat(n, 1)
        h += x.mean(1)
        h *= self.scale
        out = torch.zeros(n, 4, dtype=x.dtype)
        out += self.p
        out.sub_(self.scale)
        return self.head(h.sin() + out.sin() * self.p.expand_as(x[:, 0]))


class OneByOne(nn.Module):
    """Examples one by one: parameters of the shape of an example, with as many times as examples."""

    def __init__(self):
        super().__init__()
        self.p, self.q, self.head = normal(4, 4), normal(4), nn.Linear(4, 2)

    def forward(self, x):
        return torch.stack([self.head(torch.sin((row + self.p) * self.q)).mean(0) for row in x])


class ByChance(nn.Module):
    """Dimensions that are repeated as often as there are examples, or a multiple of it, and do not run over them."""

    def __init__(self):
        super().__init__()
        self.pos, self.k, self.t, self.head = normal(1, 4), normal(1, 1, 2), normal(4, 1), nn.Linear(4, 2)
        self.W = normal(4, 4)

    def forward(self, x):
        x = x.repeat(1, 2, 1) + self.pos.expand(8, -1).repeat(1, 1)
        x = F.conv1d(x.mT, self.k.expand(4, 1, 2), groups=4, padding=1)[..., :8].mT
        W = torch.where(torch.eye(4, dtype=torch.bool), self.W, self.t.expand(4, 4))
        flat = torch.sin(x.transpose(0, 1).flatten(0, 1) @ W - self.pos)
        return self.head(flat.unflatten(0, (8, -1)).mean(0))


class Detached(nn.Module):
    """Parameters without a gradient on some of their ways, and a rounding with the gradient of the identity."""

    def __init__(self):
        super().__init__()
        self.p, self.W, self.head = normal(4), normal(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            shift = x * self.p - x @ self.W
        W = self.W + (self.W.sign() - self.W).detach()
        return self.head(torch.sin(x @ W + shift + self.p * self.p.detach()).mean(1))


class TimeFirst(nn.Module):
    """Times first all the way: positions, tokens and states have their examples second."""

    def __init__(self):
        super().__init__()
        self.pos, self.token, self.W = normal(5, 1, 4), normal(1, 1, 4), normal(2, 4, 3)
        self.layer, self.head = nn.GRU(6, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = x.transpose(0, 1)
        x = torch.cat([self.token.expand(1, x.shape[1], 4), x]) - self.pos
        x = torch.einsum("tnd,hde->tnhe", x, self.W).flatten(2)
        return self.head(self.layer(x)[0].sum(0))


# Not written out -----------------------------------------------------------------------------------


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.head = (
            nn.LSTM(4, 3, batch_first=True),
            nn.GRU(4, 3, batch_first=True),
            nn.Linear(3, 2),
        )

    def forward(self, x):
        packed = rnn.pack_padded_sequence(x, torch.full((len(x),), 3), batch_first=True)
        return self.head(self.lstm(packed)[1][0][0] + self.gru(packed)[1][0])


class Refused(nn.Module):
    """Calls that rules do not cover, of operations that have them."""

    def __init__(self):
        super().__init__()
        self.p, self.q, self.W = nn.Parameter(torch.rand(4) + 0.5), normal(4, 4), normal(4, 4)
        self.one, self.many, self.scalar = normal(1, 4), normal(65, 4, 1), normal()

    def forward(self, x):
        x = torch.sub(x, self.p, alpha=2.0) + torch.add(x, self.p, alpha=-1.0)
        x = x + torch.div(x, self.p, rounding_mode=None) + 0.1 * torch.div(x, self.p, rounding_mode="floor")
        x = torch.sin(x + torch.einsum("nta,bb->nta", x, self.q) + torch.einsum("nta,ta->nta", x, self.one))
        y = torch.addmm(self.p, x[:, 0], self.W, beta=0.5) + torch.addmm(self.one, x[:, 1], self.W)
        y = y + torch.einsum("na,ab,b->nb", x[:, 2], self.q, self.p) + torch.einsum(",na->na", self.scalar, y)
        return y[:, :2] + (x.unsqueeze(1) @ self.many).sum((1, 2)) + self.q.repeat(len(x), 2).view(len(x), -1)[:, :2]


def case(name, make, inputs=None):
    return zoo.Case(name, make, inputs or zoo.sequences(4, 4))


CASES = (
    case("GPT-2", GPT2, zoo.tokens(4, 7)),
    case("ViT", ViT, zoo.images(1, 4)),
    case("BERT", BERT, zoo.tokens(4, 7)),
    case("relative position bias", RelativeBias),
    case("a weight for each head", PerHead),
    case("cross attention", CrossAttention, zoo.sequences(4, 3)),
    case("decoder", Decoder),
    case("mask tokens", MaskToken),
    case("computed weights", computed, zoo.images(1, 4)),
    case("adapters", Adapters),
    case("gates", Gated),
    case("positions by a network", PositionalMLP),
    case("parts of a weight", Parts),
    case("products", Products),
    case("contractions", Contractions),
    case("transposed convolutions", Upsampling, zoo.sequences(2, 4)),
    case("LSTM", lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True)),
    case("LSTM, time first", lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True)),
    case("GRU", lambda: Recurrent(nn.GRU, num_layers=2, batch_first=True, dropout=0.3)),
    case("GRU, time first", lambda: Recurrent(nn.GRU, bidirectional=True, bias=False)),
    case("RNN", lambda: Recurrent(nn.RNN, num_layers=2, batch_first=True)),
    case("RNN, relu, time first", lambda: Recurrent(nn.RNN, nonlinearity="relu", bidirectional=True)),
    case("learned initial states", Initial),
    case("cells", Cells),
    case("parameter as input and weight", InputAndWeight),
    case("settled tensor in several places", SettledTwice),
    case("parameter and views of it", ViewAndWhole),
    case("buffers in place", BuffersInPlace),
    case("repeated parameters in place", WrittenInto),
    case("sizes by chance", ByChance),
    case("detached", Detached),
    case("time first", TimeFirst),
)
EXACT = (
    case("settled tensor in place", SettledInPlace),
    case("examples one by one", OneByOne),
    case("packed sequence", Packed),
    case("projected LSTM", lambda: Recurrent(nn.LSTM, proj_size=2, batch_first=True)),
    case("refused calls", Refused),
)


def assert_exact(lin, net, x, dtype):
    J = oracles.jacobian(net, x)
    oracles.assert_close(lin.jacobian(x), J, dtype)
    oracles.assert_close(jacana.gram(lin, x), J @ J.T, dtype, scale=(np.abs(J) @ np.abs(J).T).max())


def refused(*_):
    raise AssertionError("a parameter fell to autodiff")


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_parameter_by_rules(case, n, monkeypatch):
    from jacana.linearization import features as module

    net, x = case.net(DOUBLE), case.x(n, DOUBLE)
    lin = jacana.linearize(net)
    assert lin.findings(lin.examples(x)).ruled == frozenset(range(len(lin.names)))
    with monkeypatch.context() as patched:
        patched.setattr(module, "vectorised", refused)
        patched.setattr(module, "looped", refused)
        lin.jacobian(x)
    assert_exact(lin, net, x, DOUBLE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_single_precision(case):
    net, x = case.net(SINGLE), case.x(3, SINGLE)
    assert_exact(jacana.linearize(net), net, x, SINGLE)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_what_rules_do_not_cover_is_exact(case, n):
    net, x = case.net(DOUBLE), case.x(n, DOUBLE)
    assert_exact(jacana.linearize(net), net, x, DOUBLE)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("layer", "rule", "operation"),
    [
        (nn.LSTM, recurrent.LSTM, torch.lstm),
        (nn.GRU, recurrent.GRU, torch.gru),
        (nn.RNN, recurrent.TanhRNN, torch.rnn_tanh),
        (nn.RNN, recurrent.ReLURNN, torch.rnn_relu),
    ],
)
def test_layers_written_out_are_those_of_torch(layer, rule, operation, bias, backwards):
    net = layer(3, 4, 2, bias=bias, bidirectional=backwards).double()
    hx = tuple(torch.randn(2 + 2 * backwards, 5, 4, dtype=DOUBLE) for _ in range(1 + (layer is nn.LSTM)))
    state = hx if len(hx) > 1 else hx[0]
    args = (torch.randn(6, 5, 3, dtype=DOUBLE), state, list(net.parameters()), bias, 2, 0.5, False, backwards, False)
    assert rule().read(*args)
    for got, want in zip(rule().write_out(True, *args), operation(*args), strict=True):
        oracles.assert_close(got, want, DOUBLE)


# Traps that once were stepped into ------------------------------------------------------------------


class Sorted(nn.Module):
    """Puts its examples in another order inside, by their values: only the data tell."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        order = x[:, 0].argsort()
        return torch.sin(self.layer(x[order]))[order.argsort()]


@pytest.mark.parametrize("layer", [nn.Linear, lambda *sizes: parametrizations.weight_norm(nn.Linear(*sizes))])
def test_examples_that_are_sorted_inside(layer):
    torch.manual_seed(0)
    net, x = Sorted(layer(3, 2)).double(), torch.randn(4, 3, dtype=DOUBLE)
    x[:, 0] = torch.tensor([0.0, 2.0, 1.0, 3.0])  # first and last stay where they are: the probe sees nothing
    J = oracles.jacobian(net, x)
    lin = jacana.linearize(net)
    for _ in range(2):
        oracles.assert_close(jacana.gram(lin, x), J @ J.T, DOUBLE)


class Checkpointed(nn.Module):
    """A layer that runs again in the backward pass, of shapes that could be taken for others."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3, 2), nn.Linear(2, 2)
        self.middle = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))

    def forward(self, x):
        return self.head(checkpoint(self.middle, torch.tanh(self.first(x)), use_reentrant=False))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_checkpointed_layers_of_any_shape(n):
    torch.manual_seed(0)
    net, x = Checkpointed().double(), torch.randn(n, 3, dtype=DOUBLE)
    J = oracles.jacobian(net, x)
    oracles.assert_close(jacana.gram(net, x), J @ J.T, DOUBLE)
    assert all(line.rule == "autodiff" for line in jacana.explain(net, x).lines)


def test_cotangents_that_cancel_are_no_sign_of_a_misreading():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False), Summed(), nn.Linear(1, 2)).double()
    x = torch.randn(5, 3, dtype=DOUBLE)
    told = {line.parameters[0]: line.rule for line in jacana.explain(net, x).lines}
    assert told["0.weight"] == "linear"
    lin = jacana.linearize(net)
    jacana.gram(lin, x)
    assert lin.trusts(lin.examples(x))


class Summed(nn.Module):
    def forward(self, x):
        return x.sum(1, keepdim=True) + x.square().mean(1, keepdim=True).detach()


def agrees(net, x, **options):
    """The kernel is the oracle's, each entry measured by its own two examples."""
    J = oracles.jacobian(net, x)
    K = J @ J.T
    scale = np.sqrt(np.diag(K))
    got = jacana.gram(net, x, **options).numpy()
    eps = np.finfo(np.float64 if next(net.parameters()).dtype == DOUBLE else np.float32).eps
    assert (np.abs(got - K) <= 1e3 * eps * np.outer(scale, scale)).all()


class Skipping(nn.Module):
    """Writes into what it computed from parameters, on a branch that few examples need."""

    def __init__(self):
        super().__init__()
        self.b, self.p, self.o = nn.Parameter(torch.randn(3)), nn.Parameter(torch.rand(3)), nn.Linear(3, 2)

    def forward(self, x):
        b = self.b * 2
        h = torch.tanh(x + b)
        rare = x[:, :1] > 1
        if rare.any():
            b += self.p
            h = torch.where(rare, torch.tanh(h * b), h)
        return self.o(h)


class Buffered(nn.Module):
    """Writes through a view into a tensor that was the same for all examples."""

    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        outs = []
        for i in range(len(x)):
            buffer, h = x.new_zeros(4), torch.tanh(self.l(x[i : i + 1]))
            if x[i, 0] > 0:
                buffer[:2].copy_(h[0, :2])
            else:
                buffer = buffer + h[0] * 0.5
            outs.append(torch.tanh(x[i : i + 1].sum(1, keepdim=True) + buffer))
        return self.o(torch.cat(outs))


@pytest.mark.parametrize("kind", [Skipping, Buffered])
def test_settled_tensors_that_are_written_into_on_some_branch(kind):
    torch.manual_seed(0)
    net, x = kind().double(), torch.randn(6, 3, dtype=DOUBLE)
    x[:, 0] = torch.tensor([-1.0, 0.0, 2.0, 0.0, 3.0, -1.0])
    agrees(net, x)
    agrees(net, x, memory_budget=6000)
    lin = jacana.linearize(net)
    for i in range(6):  # found out with the first of them, used for all
        J = oracles.jacobian(net, x[i : i + 1])
        oracles.assert_close(lin.jacobian(x[i : i + 1]), J, DOUBLE)


class Scaled(nn.Module):
    """Sorts; a branch with large inputs has small cotangents."""

    def __init__(self):
        super().__init__()
        self.raw, self.m = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        order = x[:, 0].argsort(stable=True)
        return self.m(x / 1e6) + self.raw(x[order])[order.argsort()] / 1e6


class Homogeneous(nn.Module):
    """Sorts; one example's output, and so its cotangents, may be a million times another's."""

    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        order = x[:, 0].argsort(stable=True)
        z = x[order]
        r = z.norm(dim=1, keepdim=True)
        return (self.o(torch.tanh(self.l(z / r))) * r**2)[order.argsort()]


def test_a_misreading_is_seen_at_any_scale(dtype):
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=dtype)
    x = x[x[:, 0].argsort()][[0, 2, 1, 3, 4]]
    agrees(Scaled().to(dtype), x * 1e6)
    x[4] *= 1000
    x[4, 0].abs_()
    agrees(Homogeneous().to(dtype), x)


class Adapted(nn.Module):
    """Time first inside, and an adapter that starts at zero: nothing tells time from examples there."""

    def __init__(self):
        super().__init__()
        self.A, self.B, self.m = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        nn.init.zeros_(self.B.weight)

    def forward(self, x):
        x = x.transpose(0, 1)
        return (self.m(x) + self.B(torch.tanh(self.A(x)))).sum(0)


class Branching(nn.Module):
    """Its weights decide which layer is used, and in which order examples go."""

    def __init__(self):
        super().__init__()
        self.a, self.g = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(3))
        self.l, self.m = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        score = x @ self.g
        order = score.argsort(stable=True)
        x = x[order][order.argsort()] * (1 + score[:, None])
        return self.l(x) * self.a if self.a > 0 else self.m(x[order])[order.argsort()].tanh() * self.a


@pytest.mark.parametrize(
    ("net", "shape", "moved"),
    [
        (Adapted(), (3, 3, 2), {"B.weight": torch.randn(2, 2)}),
        (Branching(), (6, 3), {"a": torch.tensor(-1.0), "g": torch.randn(3)}),
        (Branching(), (6, 3), {"g": torch.randn(3)}),
    ],
)
def test_other_weights_are_looked_at_anew(net, shape, moved):
    torch.manual_seed(0)
    net, x = net.double(), torch.randn(shape, dtype=DOUBLE)
    there = copy.deepcopy(net)
    moved = {name: value.double() for name, value in moved.items()}
    there.load_state_dict(moved, strict=False)
    J = oracles.jacobian(there, x)
    oracles.assert_close(jacana.gram(net, x, weights=moved), J @ J.T, DOUBLE)
    wanted = {name: value.clone().requires_grad_() for name, value in moved.items()}
    oracles.assert_close(jacana.gram(net, x, weights=wanted).detach(), J @ J.T, DOUBLE)


class Transformed(nn.Module):
    """torch.func inside the network."""

    def __init__(self, transform):
        super().__init__()
        self.m, self.transform = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), transform

    def forward(self, x):
        return self.transform(self.m, x)


@pytest.mark.parametrize(
    "transform",
    [
        lambda m, x: torch.func.vmap(torch.func.grad(lambda row: m(row).sum()))(x),
        lambda m, x: torch.func.jvp(m, (x,), (torch.ones_like(x),))[1],
        lambda m, x: torch.func.vmap(lambda row: m(row.expand(5, 4)).mean(0))(x),
    ],
)
def test_transforms_inside_the_network(transform):
    torch.manual_seed(0)
    agrees(Transformed(transform).double(), torch.randn(5, 4, dtype=DOUBLE))


def test_an_example_of_which_every_key_is_masked():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.o = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            mixed, _ = self.m(x * 1, x + 0, x, key_padding_mask=x[:, :, 0] > 1, need_weights=False)
            return self.o(mixed.mean(1))

    torch.manual_seed(0)
    x = torch.randn(4, 5, 4, dtype=DOUBLE).clamp(max=0.9)
    x[1, :, 0] = 2.0
    agrees(Masked().double().eval(), x)


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.cache = nn.Linear(3, 2), None

    def forward(self, x):
        if self.cache is None:
            self.cache = self.l.weight.t() * 1
        return torch.tanh(x @ self.cache) + self.l.bias


def test_a_stale_tensor_of_an_earlier_pass_is_refused():
    net, x = Caching().double(), torch.randn(5, 3, dtype=DOUBLE)
    agrees(net, x)
    net.cache = None
    net(x)
    with pytest.raises(jacana.errors.UnsupportedNetwork, match=r"Caching\.cache"):
        jacana.gram(net, x)
    net.cache = None
    agrees(net, x)


def test_scripted_modules_inside_are_refused():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            with warnings.catch_warnings():  # that scripting is old
                warnings.simplefilter("ignore")
                self.inner = torch.jit.script(nn.Linear(3, 2))

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(jacana.errors.UnsupportedNetwork, match="eager"):
        jacana.gram(Outer(), torch.randn(4, 3))


class Halved(nn.Module):
    """Each example uses one half of a weight; examples that all use the same half never touch the other."""

    def __init__(self):
        super().__init__()
        self.W, self.o = normal(6, 3), nn.Linear(3, 2)

    def forward(self, x):
        up = x[:, :1] > 0
        if up.all():
            return self.o(F.linear(x, self.W[:3]))
        if not up.any():
            return self.o(F.linear(x, self.W[3:]))
        return self.o(torch.where(up, F.linear(x, self.W[:3]), F.linear(x, self.W[3:])))


def test_blocks_that_use_different_windows_of_a_parameter():
    torch.manual_seed(0)
    net, x = Halved().double(), torch.randn(12, 3, dtype=DOUBLE)
    x[:, 0] = torch.cat([x[:6, 0].abs(), -x[6:, 0].abs()])
    J = oracles.jacobian(net, x)
    lin = jacana.linearize(net)
    oracles.assert_close(jacana.gram(lin, x[:6], x[6:]), J[:12] @ J[12:].T, DOUBLE)
    findings = lin.findings(lin.examples(x))
    for examples in (2, 4, 6, 60):  # blocks and slabs of one half, of the other, of both
        room = 8 * 24**2 + examples * 6 * findings.bytes_per_example
        oracles.assert_close(jacana.gram(lin, x, memory_budget=room), J @ J.T, DOUBLE)
