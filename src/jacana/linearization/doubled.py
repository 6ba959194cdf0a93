"""Doubled: the graph of a backward pass, kept, so that both products are one pass through a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.written_out import WrittenOut
from jacana.networks import Examples, Network

__all__ = ["Doubled"]


@final
class Doubled:
    """J and Jᵀ of a batch from kept graphs: u ↦ Jᵀu is a backward pass, and v ↦ J v a backward pass through that one.

    Each costs 2/3 of a forward and backward pass, however often: a Fisher product costs 4/3, the floor.

    Args:
        network: the network.
        examples: a batch; they are held.
        written_out: write out operations whose second derivative is dear.

    References:
        Townsend 2017, A new trick for calculating Jacobian vector products.
    """

    def __init__(self, network: Network, examples: Examples, *, written_out: bool) -> None:
        self._network = network
        with WrittenOut() if written_out else contextlib.nullcontext():
            self._out, self._leaves = network.record(examples)
        self._pulled: tuple[Tensor, list[int], list[Tensor]] | None = None

    @property
    def output(self) -> Float[Tensor, "n c"]:
        """f(x; θ0)."""
        return self._out.detach()

    @property
    def is_doubled(self) -> bool:
        """Whether there is the graph that :meth:`push` goes through."""
        return self._pulled is not None

    def double(self) -> None:
        """Make the graph that :meth:`push` goes through, if there is none."""
        if self._pulled is not None:
            return
        u = torch.zeros_like(self._out, requires_grad=True)
        pulled = torch.autograd.grad(
            self._out, self._leaves, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        reached = [i for i, tensor in enumerate(pulled) if tensor.requires_grad]
        self._pulled = u, reached, [pulled[i] for i in reached]

    def pull(self, u: Float[Tensor, "n c"]) -> Float[Tensor, " p"]:
        """Jᵀ u."""
        return self._network.flatten(self._gradients(u, batched=False))

    def pull_several(self, u: Float[Tensor, "n c k"]) -> Float[Tensor, "p k"]:
        """Jᵀ U, all columns at once."""
        pieces = self._gradients(u.movedim(-1, 0), batched=True)
        return torch.cat([piece.reshape(u.shape[-1], -1) for piece in pieces], 1).T

    def push(self, v: Float[Tensor, " p"]) -> Float[Tensor, "n c"]:
        """J v."""
        return self._transposed(list(self._network.split(v)), batched=False)

    def push_several(self, v: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        """J V, all columns at once."""
        pieces = torch.split(v.T, list(self._network.sizes), 1)
        shaped = [
            piece.reshape(-1, *value.shape).to(value) for piece, value in zip(pieces, self._network.values, strict=True)
        ]
        return self._transposed(shaped, batched=True).movedim(0, -1)

    def _gradients(self, u: Tensor, *, batched: bool) -> list[Tensor]:
        """Gradients of the parameters; zeros of the right shape for those that the output does not depend on."""
        lead = u.shape[:1] if batched else ()
        gradients: Sequence[Tensor | None] = [None] * len(self._network.values)
        if self._out.requires_grad:
            gradients = torch.autograd.grad(
                self._out, self._leaves, u.to(self._out), retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        pairs = zip(gradients, self._network.values, strict=True)
        return [value.new_zeros(*lead, *value.shape) if found is None else found for found, value in pairs]

    def _transposed(self, pieces: list[Tensor], *, batched: bool) -> Tensor:
        self.double()
        product: Tensor | None = None
        if self._pulled is not None and self._pulled[1]:
            u, reached, pulled = self._pulled
            tangents = [pieces[i] for i in reached]
            (product,) = torch.autograd.grad(
                pulled, [u], tangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        if product is None:
            return self._out.new_zeros(*((len(pieces[0]),) if batched else ()), *self._out.shape)
        return product.detach()
