"""Features: the Jacobian of a block of examples as shares that together cover every parameter once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.errors import UnsupportedNetwork
from jacana.linearization.by_rule import shares_by_rule
from jacana.linearization.per_example import looped, vectorised
from jacana.linearization.shares import Formed, Share, add_product
from jacana.networks import Examples, Network, without_autocast

__all__ = ["Features", "features"]

P = ParamSpec("P")
R = TypeVar("R")


def _exact(method: Callable[P, R]) -> Callable[P, R]:
    """A contraction runs without a graph, and in its own dtype whatever autocast the caller set."""

    @functools.wraps(method)
    def contract(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad(), without_autocast():
            return method(*args, **kwargs)

    return contract


class Features:
    """J of n examples, ready to be contracted."""

    def __init__(self, n: int, c: int, shares: Sequence[Share]) -> None:
        self.n, self.c = n, c
        self.shares = tuple(shares)
        self.of = {place: share for share in self.shares for place in share.places}

    @property
    def n_rows(self) -> int:
        """n·c."""
        return self.n * self.c

    @property
    def nbytes(self) -> int:
        """The memory held."""
        return sum(share.nbytes for share in self.shares)

    @_exact
    def dense(self) -> Float[Tensor, "nc p"]:
        """The Jacobian itself, in parameter order."""
        return torch.cat([self.of[place].dense(place) for place in sorted(self.of)], dim=1)

    @_exact
    def of_output(self, k: int) -> Features:
        """J of output k alone."""
        return Features(self.n, 1, [share.of_output(k) for share in self.shares])

    @_exact
    def folded(self) -> Features:
        """The rows of an example side by side: what is contracted then is the trace over the outputs."""
        return Features(self.n, 1, [share.folded() for share in self.shares])

    @_exact
    def accumulate(
        self, kernel: Float[Tensor, "nc mc"], other: Features, variances: Sequence[float], *, symmetric: bool = False
    ) -> None:
        """Add Σ_θ s_θ² J_θ J'_θᵀ; in the lower half alone if ``symmetric``."""
        for share in self.shares:
            against = other.of[share.places[0]]
            if against.places == share.places:
                share.accumulate(kernel, against, variances, symmetric=symmetric)
                continue
            for place in share.places:  # a network that branches may use its parameters otherwise for other examples
                if variances[place] > 0.0:
                    left, right = share.dense(place), other.of[place].dense(place)
                    add_product(kernel, left, right, variances[place], symmetric=symmetric)

    @_exact
    def blocks(self, variances: Sequence[float]) -> Float[Tensor, "n c c"]:
        """Σ s_θ² J_i J_iᵀ of each example with itself."""
        total = self.shares[0].blocks(variances)
        for share in self.shares[1:]:
            total = total + share.blocks(variances)
        return total

    @_exact
    def pull(self, cotangents: Float[Tensor, "nc k"]) -> Float[Tensor, "p k"]:
        """Jᵀ U."""
        pulled: dict[int, Tensor] = {}
        for share in self.shares:
            pulled |= share.pull(cotangents)
        return torch.cat([pulled[place] for place in sorted(pulled)])

    @_exact
    def push(self, tangents: Float[Tensor, "p k"], sizes: Sequence[int]) -> Float[Tensor, "nc k"]:
        """J V, with ``sizes`` the number of entries of each parameter."""
        pieces = torch.split(tangents, list(sizes))
        products = [share.push({place: pieces[place] for place in share.places}) for share in self.shares]
        return torch.stack(products).sum(0)


def features(
    network: Network,
    examples: Examples,
    *,
    ruled: frozenset[int],
    vectorises: bool,
    dtype: torch.dtype = torch.float64,
) -> Features:
    """Compute the features of one block of examples, in one forward and a few backward passes.

    Args:
        network: the network.
        examples: a block that fits in memory.
        ruled: the parameters that the rules for operations may cover; what no rule covers is formed by autodiff.
        vectorises: form by vmap rather than one example at a time.
        dtype: of the contraction; the network's own numbers are cast to it.
    """
    shares = shares_by_rule(network, examples, ruled, dtype) if ruled else []
    covered = {place for share in shares for place in share.places}
    rest = [place for place in range(len(network.values)) if place not in covered]
    if rest:
        form = vectorised if vectorises else looped
        for place, gradients in zip(rest, form(network, examples, rest), strict=True):
            shares.append(Formed(place, gradients.reshape(*gradients.shape[:2], -1), dtype))
    for share in shares:
        if not bool(share.is_finite()):
            names = ", ".join(repr(network.names[place]) for place in share.places)
            raise UnsupportedNetwork(
                f"net: the Jacobian in {names} has NaN or infinite entries on finite inputs (a square "
                "root or norm at zero?); keep such operations away from their singular points, e.g. (x + 1e-12).sqrt()."
            )
    return Features(len(examples), shares[0].c, shares)
