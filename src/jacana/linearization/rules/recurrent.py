"""Recurrent layers and cells, which torch runs as one operation, written out step by step in linear maps."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.rule import Decomposition

__all__ = ["GRU", "LSTM", "GRUCell", "LSTMCell", "ReLURNN", "ReLURNNCell", "TanhRNN", "TanhRNNCell"]

State = tuple[Tensor, ...]


class _Step(ABC):
    @abstractmethod
    def step(self, given: Tensor, recurrent: Tensor, state: State) -> State:
        """The next state, its output first, from linear maps of the input and of the last output."""


class _LSTM(_Step):
    def step(self, given: Tensor, recurrent: Tensor, state: State) -> State:
        gates = given + recurrent
        i, f, g, o = gates.chunk(4, -1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class _GRU(_Step):
    def step(self, given: Tensor, recurrent: Tensor, state: State) -> State:
        (r, z, n), (hidden_r, hidden_z, hidden_n) = given.chunk(3, -1), recurrent.chunk(3, -1)
        new = torch.tanh(n + torch.sigmoid(r + hidden_r) * hidden_n)
        return (new + torch.sigmoid(z + hidden_z) * (state[0] - new),)


class _TanhRNN(_Step):
    def step(self, given: Tensor, recurrent: Tensor, state: State) -> State:
        return (torch.tanh(given + recurrent),)


class _ReLURNN(_Step):
    def step(self, given: Tensor, recurrent: Tensor, state: State) -> State:
        return (torch.relu(given + recurrent),)


class _Layers(Decomposition, _Step):
    """Layers over time, in one direction or both. Packed sequences, projections and dropout are not written out."""

    layer: ClassVar[Callable[..., nn.Module]]

    def read(
        self, input: Tensor, hx: Any, params: Any, has_biases: Any, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool = False,
    ) -> bool | None:  # fmt: skip
        if not isinstance(has_biases, bool) or input.ndim != 3 or (train and dropout > 0):
            return None
        plain = len(params) == num_layers * (1 + bidirectional) * (4 if has_biases else 2)
        return True if plain else None

    def write_out(
        self, form: bool, input: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, num_layers: int,
        dropout: float, train: bool, bidirectional: bool, batch_first: bool = False,
    ) -> State:  # fmt: skip
        x = input if batch_first else input.transpose(0, 1)
        initial, directions, k = _state(hx), 1 + bidirectional, 4 if has_biases else 2
        last: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for place in range(layer * directions, (layer + 1) * directions):
                state = tuple(part[place] for part in initial)
                weights = params[place * k : (place + 1) * k]
                output, state = self._over_time(x, state, *weights, backwards=bool(place % directions))
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        x = x if batch_first else x.transpose(0, 1)
        return (x, *(torch.stack(parts) for parts in zip(*last, strict=True)))

    def _over_time(
        self, x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
        b_hh: Tensor | None = None, *, backwards: bool,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """All times of the input in one linear map, what recurs one at a time."""
        outputs = []
        given = F.linear(x, w_ih, b_ih).unbind(1)
        for now in reversed(given) if backwards else given:
            state = self.step(now, F.linear(state[0], w_hh, b_hh), state)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backwards else outputs, 1), state

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Sequences(self.layer(3, 4, num_layers=2, bidirectional=True)), torch.randn(3, 2, 3)


class _Cell(Decomposition, _Step):
    """One step of a layer, for examples in a batch."""

    cell: ClassVar[Callable[..., nn.Module]]

    def read(self, input: Tensor, hx: Any, *weights: Tensor | None) -> bool | None:
        return True if input.ndim == 2 else None

    def write_out(
        self, form: bool, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Tensor | State:  # fmt: skip
        state = _state(hx)
        state = self.step(F.linear(input, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        return state if len(state) > 1 else state[0]

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Steps(self.cell(3, 4)), torch.randn(3, 2, 3)


def _state(hx: Any) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


class LSTM(_LSTM, _Layers):
    """(i, f, g, o) = W x + b + U h + d; c' = σ(f) c + σ(i) tanh(g); h' = σ(o) tanh(c').

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; gates in torch's order.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.lstm,)
    layer = nn.LSTM


class LSTMCell(_LSTM, _Cell):
    """One step of :class:`LSTM`."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.lstm_cell,)
    cell = nn.LSTMCell


class GRU(_GRU, _Layers):
    """(r, z, n) = W x + b, (r', z', n') = U h + d; m = tanh(n + σ(r + r') n'); h' = m + σ(z + z') (h − m).

    Cho et al. 2014 (arXiv 1406.1078), with the reset after the product as torch has it.
    """

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.gru,)
    layer = nn.GRU


class GRUCell(_GRU, _Cell):
    """One step of :class:`GRU`."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.gru_cell,)
    cell = nn.GRUCell


class TanhRNN(_TanhRNN, _Layers):
    """h' = tanh(W x + b + U h + d): Elman 1990."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.rnn_tanh,)
    layer = nn.RNN


class TanhRNNCell(_TanhRNN, _Cell):
    """One step of :class:`TanhRNN`."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.rnn_tanh_cell,)
    cell = nn.RNNCell


class ReLURNN(_ReLURNN, _Layers):
    """h' = max(W x + b + U h + d, 0)."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.rnn_relu,)
    layer = functools.partial(nn.RNN, nonlinearity="relu")


class ReLURNNCell(_ReLURNN, _Cell):
    """One step of :class:`ReLURNN`."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.rnn_relu_cell,)
    cell = functools.partial(nn.RNNCell, nonlinearity="relu")


class _Sequences(nn.Module):
    """Time first, as many times as examples, the state of one layer and the outputs of both."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        outputs, state = self.layer(x)
        state = state if isinstance(state, Tensor) else state[1]
        out: Tensor = self.head(outputs.square().sum(0)) + state[1, :, :2] + state[2, :, 2:]
        return out


class _Steps(nn.Module):
    """A cell in a loop of the network's own."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        out: Tensor = self.head(state if isinstance(state, Tensor) else state[0] * state[1])  # type: ignore[index]
        return out
