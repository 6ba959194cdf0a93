"""Proof: that a way to J v agrees with reverse mode on a batch, ⟨u, J v⟩ = ⟨Jᵀu, v⟩, for vectors without a pattern."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.networks import Network

__all__ = ["agrees"]

_ROUNDING = 64.0


def agrees(
    network: Network,
    pull: Callable[[Float[Tensor, "n c"]], Float[Tensor, " p"]],
    push: Callable[[Float[Tensor, " p"]], Float[Tensor, "n c"]],
    n: int,
    c: int,
) -> bool:
    """Whether two products are transposes of each other, as far as one pair of vectors tells.

    A network may do something else for examples that the probe did not see, and an operation whose derivative cannot
    be differentiated gives zeros without a word.

    Args:
        network: the network.
        pull: u ↦ Jᵀu by reverse mode, which defines J.
        push: v ↦ J v, on trial.
        n: examples.
        c: outputs.
    """
    device = network.device
    u = (1.5 + torch.arange(n * c, dtype=torch.float64).mul_(2.399963).cos_()).view(n, c).to(device)
    pulled = torch.split(pull(u.to(network.dtype)).double(), list(network.sizes))
    angles = torch.split(torch.arange(network.n_parameters, dtype=torch.float64), list(network.sizes))
    pieces = []
    for angle, gradient in zip(angles, pulled, strict=True):  # every parameter tensor weighs alike
        piece = (0.7 + 1.3247 * angle).sin().to(device)
        size = torch.linalg.vector_norm(gradient)
        pieces.append(torch.where(size > 0.0, piece / size, piece))
    v = torch.cat(pieces).to(network.dtype)
    terms = torch.cat(pulled) * v.double()
    products = u * push(v).double()
    tolerance = network.eps**0.5 * products.abs().sum() + _ROUNDING * network.eps * terms.abs().sum()
    return bool((products.sum() - terms.sum()).abs() <= tolerance)
