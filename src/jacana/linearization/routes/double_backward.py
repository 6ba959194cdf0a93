"""Double backward: u ↦ Jᵀu is linear in u, so the vector-Jacobian product of that map is J v (Townsend 2017)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.routes.route import Route
from jacana.networks import Examples, Network

__all__ = ["DoubleBackward"]


class DoubleBackward(Route):
    """Two reverse passes a column, the first kept for all columns."""

    name: ClassVar[str] = "double backward"

    def jvp(self, network: Network, examples: Examples, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        out, leaves = network.record(examples)
        dummy = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(out, leaves, dummy, create_graph=True, allow_unused=True, materialize_grads=True)
        reached = [(i, tensor) for i, tensor in enumerate(pulled) if tensor.requires_grad]
        columns = []
        for vector in vectors.unbind(1):
            pieces = network.split(vector)
            if not reached:
                columns.append(torch.zeros_like(out))
                continue
            (column,) = torch.autograd.grad(
                [tensor for _, tensor in reached], [dummy], [pieces[i] for i, _ in reached],
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            columns.append(column)
        return torch.stack(columns, dim=2).detach()
