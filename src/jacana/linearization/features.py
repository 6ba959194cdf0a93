"""Features: the Jacobian of a block of examples as one share a parameter tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.errors import UnsupportedNetwork
from jacana.linearization.linear_rule import linear_shares
from jacana.linearization.per_example import looped, vectorised
from jacana.linearization.shares import Formed, Share
from jacana.networks import Examples, Network

__all__ = ["Features", "features"]


class Features:
    """J of n examples, in parameter order, ready to be contracted."""

    def __init__(self, n: int, c: int, shares: list[Share]) -> None:
        self.n, self.c, self.shares = n, c, shares

    @property
    def n_rows(self) -> int:
        """n·c."""
        return self.n * self.c

    @property
    def nbytes(self) -> int:
        """The memory held."""
        return sum(share.nbytes for share in self.shares)

    def dense(self) -> Float[Tensor, "nc p"]:
        """The Jacobian itself."""
        return torch.cat([share.dense() for share in self.shares], dim=1)

    def accumulate(
        self, kernels: Mapping[int, Float[Tensor, "nc mc"]], other: Features, variances: list[float]
    ) -> None:
        """Add s_θ² J_θ J'_θᵀ to the kernel of θ's place, for every parameter."""
        for place, (share, against) in enumerate(zip(self.shares, other.shares, strict=True)):
            if variances[place] > 0.0:
                share.accumulate(kernels[place], against, variances[place])

    def blocks(self, variances: list[float]) -> Float[Tensor, "n c c"]:
        """Σ s_θ² J_i J_iᵀ of each example with itself."""
        total = variances[0] * self.shares[0].blocks()
        for share, variance in zip(self.shares[1:], variances[1:], strict=True):
            total += variance * share.blocks()
        return total

    def pull(self, cotangents: Float[Tensor, "nc k"]) -> Float[Tensor, "p k"]:
        """Jᵀ U."""
        return torch.cat([share.pull(cotangents) for share in self.shares])

    def push(self, tangents: Float[Tensor, "p k"], sizes: Sequence[int]) -> Float[Tensor, "nc k"]:
        """J V, with ``sizes`` the number of entries of each parameter."""
        pieces = torch.split(tangents, list(sizes))
        products = [share.push(piece) for share, piece in zip(self.shares, pieces, strict=True)]
        return torch.stack(products).sum(0)


def features(
    network: Network, examples: Examples, *, structured: bool, vectorises: bool, dtype: torch.dtype = torch.float64
) -> Features:
    """Compute the features of one block of examples, in one forward and a few backward passes.

    Args:
        network: the network.
        examples: a block that fits in memory.
        structured: use the rules for operations; what no rule covers is formed by autodiff.
        vectorises: form by vmap rather than one example at a time.
        dtype: of the contraction; the network's own numbers are cast to it.
    """
    shares = linear_shares(network, examples, dtype) if structured else {}
    rest = [place for place in range(len(network.values)) if place not in shares]
    if rest:
        form = vectorised if vectorises else looped
        for place, gradients in zip(rest, form(network, examples, rest), strict=True):
            shares[place] = Formed(gradients.reshape(*gradients.shape[:2], -1).to(dtype))
    for place, share in shares.items():
        if not share.is_finite():
            raise UnsupportedNetwork(
                f"net: the Jacobian in {network.names[place]!r} has NaN or infinite entries on finite inputs (a square "
                "root or norm at zero?); keep such operations away from their singular points, e.g. (x + 1e-12).sqrt()."
            )
    c = next(iter(shares.values())).blocks().shape[1]
    return Features(len(examples), c, [shares[place] for place in range(len(network.values))])
