"""The rule for y = a Wᵀ + b: gradients of W and b from the operation's inputs and cotangents, nothing more.

Operations are seen as ``F.linear`` under plain autograd, so functional calls, shared weights and a module used twice
are all the same to it. A parameter that also reaches the output another way (tied to an embedding, as a view, by
another operation) is left out whole, because shares add over parameters and not over uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from jacana.linearization.shares import Formed, Outer, Share
from jacana.networks import Examples, Network

__all__ = ["linear_shares"]


@dataclass(frozen=True)
class _Use:
    """One call: which parameters (by place), its input, and the zeros added to its output to differentiate by."""

    weight: int | None
    bias: int | None
    activations: Float[Tensor, "n *t a"]
    tap: Float[Tensor, "n *t g"]


class _Watch(TorchFunctionMode):
    """Takes the selected parameters out of every ``F.linear`` and records what their gradients are made of."""

    def __init__(self, leaves: tuple[Tensor, ...], n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._places = {id(leaf): place for place, leaf in enumerate(leaves)}
        self._n, self._dtype = n, dtype
        self.uses: list[_Use] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        given: dict[str, Any] = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        inputs, weight, bias = given["input"], given["weight"], given.get("bias")
        places = (self._places.get(id(weight)), self._places.get(id(bias)))
        if places == (None, None) or inputs.ndim < 2 or len(inputs) != self._n:
            return func(*args, **kwargs)
        if places[0] is not None:
            weight = weight.detach()
        if bias is not None and places[1] is not None:
            bias = bias.detach()
        out = func(inputs, weight, bias)
        tap = torch.zeros_like(out, requires_grad=True)
        activations = inputs.detach().to(self._dtype, copy=True)  # a later in-place operation must not reach it
        self.uses.append(_Use(*places, activations, tap))
        return out + tap


def linear_shares(network: Network, examples: Examples, dtype: torch.dtype) -> dict[int, Share]:
    """Shares of all parameters that reach the output through ``F.linear`` alone, by place; the rest are left out."""
    watch = _Watch(network.leaves, len(examples), dtype)
    with watch:
        out, leaves = network.record(examples)
    if not watch.uses:
        return {}
    taps = [use.tap for use in watch.uses]
    elsewhere: set[int] = set()
    by_output = []
    for k in range(out.shape[1]):
        gradients = torch.autograd.grad(out[:, k].sum(), [*taps, *leaves], retain_graph=True, allow_unused=True)
        by_output.append([t.new_zeros(t.shape) if g is None else g for g, t in zip(gradients, taps, strict=False)])
        elsewhere |= {place for place, g in enumerate(gradients[len(taps) :]) if g is not None}
    cotangents = [torch.stack([g[i] for g in by_output], dim=1) for i in range(len(taps))]
    if not _examples_first(out, taps, cotangents, network.eps):
        return {}
    cotangents = [cotangent.to(dtype) for cotangent in cotangents]
    shares: dict[int, Share] = {}
    for place in range(len(leaves)):
        weights = [i for i, use in enumerate(watch.uses) if use.weight == place]
        biases = [i for i, use in enumerate(watch.uses) if use.bias == place]
        if place in elsewhere or bool(weights) == bool(biases):
            continue
        if weights:
            shares[place] = _weight_share([(watch.uses[i].activations, cotangents[i]) for i in weights])
        else:
            shares[place] = Formed(_total([_positions(cotangents[i], 2).sum(2) for i in biases]))
    return shares


def _weight_share(uses: list[tuple[Tensor, Tensor]]) -> Share:
    """Factored where the weight is applied once to each example, else its per-example gradients, summed over uses."""
    if len(uses) == 1 and uses[0][0].ndim == 2:
        return Outer(*uses[0])
    formed = [torch.einsum("nctg,nta->ncga", _positions(g, 2), _positions(a, 1)) for a, g in uses]
    return Formed(_total(formed).flatten(2))


def _positions(tensor: Tensor, leading: int) -> Tensor:
    """(*leading, *t, d) to (*leading, T, d), with T = 1 where there are no positions."""
    return tensor.reshape(*tensor.shape[:leading], -1, tensor.shape[-1])


def _total(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).sum(0)


def _examples_first(out: Tensor, taps: list[Tensor], cotangents: list[Tensor], eps: float) -> bool:
    """Whether row i of every tap belongs to example i alone.

    A sequence-first layer inside the network can have as many positions as there are examples, and a network may sort
    its examples by length. Weighting the examples' outputs must weight the rows of the cotangents alike.
    """
    n, c = out.shape
    by_example = torch.linspace(1.0, 2.0, n, dtype=out.dtype, device=out.device)
    by_output = torch.linspace(1.0, 3.0, c, dtype=out.dtype, device=out.device).square()
    total = (by_example @ out) @ by_output
    weighted = torch.autograd.grad(total, taps, allow_unused=True, materialize_grads=True)
    tolerance = eps**0.5 / 4.0
    for got, cotangent in zip(weighted, cotangents, strict=True):
        expected = torch.einsum("i,k,ik...->i...", by_example, by_output, cotangent)
        if bool(((got - expected).abs() > tolerance * expected.abs().max()).any()):
            return False
    return True
