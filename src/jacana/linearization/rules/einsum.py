"""Sums of products over named dimensions, written out in linear maps."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacana.linearization.rules.matmul import MOST_MATRICES
from jacana.linearization.rules.rule import Decomposition

__all__ = ["Einsum", "Tensordot"]

_ELLIPSIS = string.digits  # labels for dimensions that "..." stands for; an equation itself has letters alone


@dataclass(frozen=True)
class _Contraction:
    """The labels of an example's operand, of the parameter and of the output; where the parameter is."""

    of_value: str
    of_parameter: str
    of_output: str
    parameter: int

    @classmethod
    def of(cls, operands: Sequence[Any], labels: Sequence[str], output: str) -> _Contraction | None:
        """None where two dimensions of one operand are the same, or an entry is broadcast."""
        parameter = next((i for i, operand in enumerate(operands) if isinstance(operand, nn.Parameter)), 0)
        sizes: dict[str, set[int]] = {}
        for names, operand in zip(labels, operands, strict=True):
            if len(set(names)) < len(names) or len(names) != operand.ndim:
                return None
            for name, size in zip(names, operand.shape, strict=True):
                sizes.setdefault(name, set()).add(size)
        stacked = [name for name in labels[0] if name in labels[1] and name in output]
        if any(len(each) > 1 for each in sizes.values()) or len(set(output)) < len(output):
            return None
        if math.prod(min(sizes[name]) for name in stacked) > MOST_MATRICES:
            return None
        return cls(labels[1 - parameter], labels[parameter], output, parameter)

    def __call__(self, operands: Sequence[Tensor]) -> Tensor:
        """Matrices of the parameter, outputs by inputs, one for each entry of the dimensions that all three have."""
        value, x = _summed(operands[1 - self.parameter], self.of_value, self.of_parameter + self.of_output)
        parameter, p = _summed(operands[self.parameter], self.of_parameter, x + self.of_output)
        sizes = dict(zip(x + p, (*value.shape, *parameter.shape), strict=True))
        stacked = [name for name in x if name in p and name in self.of_output]
        inner = [name for name in x if name in p and name not in self.of_output]
        positions, outputs = [name for name in x if name not in p], [name for name in p if name not in x]
        stack, a, g = (math.prod(sizes[name] for name in names) for names in (stacked, inner, outputs))
        value = value.permute([x.index(name) for name in (*stacked, *positions, *inner)])
        value = value.reshape(stack, *(sizes[name] for name in positions), a)
        parameter = parameter.permute([p.index(name) for name in (*stacked, *outputs, *inner)]).reshape(stack, g, a)
        maps = [F.linear(*pair) for pair in zip(value.unbind(), parameter.unbind(), strict=True)]
        out = torch.stack(maps) if len(maps) > 1 else maps[0].unsqueeze(0)
        names = [*stacked, *positions, *outputs]
        return out.reshape([sizes[name] for name in names]).permute([names.index(name) for name in self.of_output])


def _summed(operand: Tensor, labels: str, kept: str) -> tuple[Tensor, str]:
    """The operand without what it alone has and the output has not."""
    dims = [i for i, label in enumerate(labels) if label not in kept]
    return (operand.sum(dims) if dims else operand), "".join(label for label in labels if label in kept)


def _hidden(term: str, operand: Tensor) -> int:
    """How many dimensions "..." stands for."""
    return operand.ndim - len(term.replace("...", "")) if "..." in term else 0


class Einsum(Decomposition):
    """Two operands, one of them a parameter: a linear map for each entry of the labels that all three tensors have."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.einsum,)

    def read(self, equation: Any, *given: Any) -> _Contraction | None:
        operands = _flat(given)
        inputs, arrow, output = equation.replace(" ", "").partition("->")
        terms = inputs.split(",")
        if len(operands) != 2 or len(terms) != 2:
            return None
        hidden = [_hidden(term, operand) for term, operand in zip(terms, operands, strict=True)]
        if max(hidden) > len(_ELLIPSIS):
            return None
        ellipsis = _ELLIPSIS[: max(hidden)]
        labels = [term.replace("...", ellipsis[len(ellipsis) - k :]) for term, k in zip(terms, hidden, strict=True)]
        once = sorted(label for label in set(inputs) & set(string.ascii_letters) if inputs.count(label) == 1)
        return _Contraction.of(operands, labels, output.replace("...", ellipsis) if arrow else ellipsis + "".join(once))

    def write_out(self, form: _Contraction, equation: str, *operands: Any) -> Tensor:
        return form(_flat(operands))

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Heads(), torch.randn(3, 2, 4)


class Tensordot(Decomposition):
    """The same with dimensions by number."""

    operations: ClassVar[tuple[Callable[..., Any], ...]] = (torch.tensordot,)

    def read(self, a: Tensor, b: Tensor, dims: Any = 2, out: Tensor | None = None) -> _Contraction | None:
        if isinstance(dims, int):
            dims = (range(a.ndim - dims, a.ndim), range(dims))
        if out is not None or not isinstance(dims, Sequence):
            return None
        left, right = string.ascii_lowercase[: a.ndim], list(string.ascii_uppercase[: b.ndim])
        for i, j in zip(*dims, strict=True):
            right[j] = left[i]
        output = "".join(label for label in (*left, *right) if (label in left) != (label in right))
        return _Contraction.of((a, b), (left, "".join(right)), output)

    def write_out(self, form: _Contraction, a: Tensor, b: Tensor, dims: Any = 2, out: None = None) -> Tensor:
        return form((a, b))

    def example(self) -> tuple[nn.Module, Tensor]:
        return _Heads(), torch.randn(3, 2, 4)


def _flat(operands: Sequence[Any]) -> Sequence[Any]:
    """Operands one by one, or as one list."""
    return operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands


class _Heads(nn.Module):
    """Attention with a matrix for each head, and heads that are joined by one more."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Parameter(torch.randn(4, 3, 2) / 2), nn.Parameter(torch.randn(3, 4, 2) / 2)
        self.value, self.join = nn.Parameter(torch.randn(3, 2, 2)), nn.Parameter(torch.randn(3, 2, 4))
        self.head = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        queries = torch.einsum("ntd,dhe->nhte", x, self.query)
        keys = torch.einsum("hde, nsd -> nhse", self.key, x)
        values = torch.einsum("nhte,hef->nhtf", queries, self.value)
        mixed = (queries @ keys.mT).softmax(-1) @ values
        x = torch.tanh(torch.tensordot(mixed, self.join, dims=([1, 3], [0, 1])))
        return torch.einsum("...td,dc->...c", x, self.head)
