"""Double backward: u ↦ Jᵀu is linear in u, so the vector-Jacobian product of that map is J v (Townsend 2017)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.doubled import Doubled
from jacana.linearization.routes.route import Route
from jacana.networks import Examples, Network

__all__ = ["DoubleBackward"]


class DoubleBackward(Route):
    """Two reverse passes a column, the first kept for all columns."""

    name: ClassVar[str] = "double backward"

    def jvp(self, network: Network, examples: Examples, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        doubled = Doubled(network, examples, written_out=False)
        return torch.stack([doubled.push(vector) for vector in vectors.unbind(1)], dim=2)
