"""Per-example gradients of whole parameters, by autodiff."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap

from jacana.linearization.routes import rows
from jacana.networks import Examples, Network

__all__ = ["looped", "vectorised"]


def vectorised(
    network: Network, examples: Examples, chosen: Sequence[int], values: Sequence[Tensor] | None = None
) -> list[Float[Tensor, "n c ..."]]:
    """∂f_k(x_i)/∂θ_j for the parameters numbered ``chosen``, by vmap over examples of reverse mode.

    Fails for networks with operations that vmap does not know (``.item()``, custom Functions). At θ0, or at ``values``,
    with the graph that leads to them.
    """
    fixed = list(network.values if values is None else values)

    def outputs(own: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        merged = list(fixed)
        for place, value in zip(chosen, own, strict=True):
            merged[place] = value
        one = Examples(tuple(tensor.unsqueeze(0) for tensor in tensors), examples.keys, examples.single)
        return network(merged, one)[0]

    own = tuple(fixed[place] for place in chosen)
    in_dims = (None, *(0 for _ in examples.tensors))
    jacobians: tuple[Tensor, ...] = vmap(jacrev(outputs), in_dims=in_dims)(own, *examples.tensors)
    return list(jacobians)


def looped(
    network: Network, examples: Examples, chosen: Sequence[int], values: Sequence[Tensor] | None = None
) -> list[Float[Tensor, "n c ..."]]:
    """The same by plain autograd, one example at a time: for every network."""
    each = [rows(network, examples[i : i + 1], values=values) for i in range(len(examples))]
    return [torch.stack([row[place] for row in each]) for place in chosen]
