"""Rows: the Jacobian one output at a time by plain autograd; it works whatever the network is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.routes.route import Route
from jacana.networks import Examples, Network

__all__ = ["Rows", "rows"]


class Rows(Route):
    """One forward and c backward passes for each example, whatever the number of columns."""

    name: ClassVar[str] = "rows"

    def jvp(self, network: Network, examples: Examples, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        products = []
        for i in range(len(examples)):
            pieces = rows(network, examples[i : i + 1])
            products.append(torch.cat([piece.reshape(len(piece), -1).to(vectors) for piece in pieces], dim=1) @ vectors)
        return torch.stack(products)


def rows(
    network: Network, example: Examples, outputs: list[int] | None = None, values: Sequence[Tensor] | None = None
) -> tuple[Float[Tensor, "c ..."], ...]:
    """The Jacobian of one example, all its outputs or the given ones, as one tensor (c, *shape) a parameter.

    At θ0, or at ``values``, which require gradients, with the graph that leads to these and to the example.
    """
    outputs_of_one, leaves = network.record(example, None if values is None else network.state(values))
    out, leaves = outputs_of_one[0], leaves if values is None else tuple(values)
    taken = range(len(out)) if outputs is None else outputs
    if not out.requires_grad:
        return tuple(value.new_zeros(len(taken), *value.shape) for value in network.values)
    each = [
        torch.autograd.grad(
            out[k],
            leaves,
            retain_graph=True,
            create_graph=values is not None,
            allow_unused=True,
            materialize_grads=True,
        )
        for k in taken
    ]
    return tuple(torch.stack([gradients[i] for gradients in each]) for i in range(len(leaves)))
