"""Features: the Jacobian of a block of examples as shares that together cover every parameter once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.errors import UnsupportedNetwork
from jacana.linearization.by_rule import shares_by_rule, shares_with_graph
from jacana.linearization.per_example import looped, vectorised
from jacana.linearization.shares import Formed, Share, add_product
from jacana.networks import Examples, Network, without_autocast

__all__ = ["Features", "features", "features_with_graph"]

P = ParamSpec("P")
R = TypeVar("R")


def _exact(method: Callable[P, R]) -> Callable[P, R]:
    """A contraction runs in its own dtype whatever autocast the caller set."""

    @functools.wraps(method)
    def contract(*args: P.args, **kwargs: P.kwargs) -> R:
        with without_autocast():
            return method(*args, **kwargs)

    return contract


class Features:
    """J of n examples, ready to be contracted.

    Args:
        n: examples.
        c: outputs.
        shares: together they cover the parameters that are wanted, each once.
        transient: the bytes that were held while the shares were computed.
    """

    def __init__(self, n: int, c: int, shares: Sequence[Share], transient: int = 0) -> None:
        self.n, self.c, self.transient = n, c, transient
        self.shares = tuple(shares)
        self.of = {place: share for share in self.shares for place in share.places}

    @property
    def n_rows(self) -> int:
        """n·c."""
        return self.n * self.c

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
    def mixed(self, weights: Float[Tensor, "n c r"]) -> Features:
        """The rows of each example combined, R_iᵀ J_i."""
        return Features(self.n, weights.shape[2], [share.mixed(weights) for share in self.shares])

    @_exact
    def formed(self) -> Features:
        """The same with gradients formed where operations have many positions: for several products with them."""
        return Features(self.n, self.c, [one for share in self.shares for one in share.formed()])

    @_exact
    def squares(self) -> Float[Tensor, " p"]:
        """Σ over the rows of the squared entries."""
        found: dict[int, Tensor] = {}
        for share in self.shares:
            found |= share.squares()
        return torch.cat([found[place] for place in sorted(found)])

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
    places: frozenset[int] | None = None,
    flags: list[Tensor] | None = None,
) -> Features:
    """Compute the features of one block of examples, in one forward and a few backward passes.

    Args:
        network: the network.
        examples: a block that fits in memory.
        ruled: the parameters that the rules for operations may cover; what no rule covers is formed by autodiff.
        vectorises: form by vmap rather than one example at a time.
        dtype: of the contraction; the network's own numbers are cast to it.
        places: the parameters that are wanted; by default all.
        flags: take what came out without a look; what must turn out true is put in here, so that a device need not be
            waited for.
    """
    wanted = frozenset(range(len(network.values))) if places is None else places
    shares: list[Share] = []
    transient = 0
    if ruled & wanted:
        try:
            shares, transient = shares_by_rule(network, examples, ruled & wanted, dtype, flags)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - a rule that fails where the network does not: autodiff serves it
            network.record(examples)  # or fails as the network does
            if flags is not None:
                flags.append(torch.zeros((), dtype=torch.bool, device=network.device))
    covered = {place for share in shares for place in share.places}
    rest = sorted(wanted - covered)
    if rest:
        form = vectorised if vectorises else looped
        for place, gradients in zip(rest, form(network, examples, rest), strict=True):
            shares.append(Formed(place, gradients.reshape(*gradients.shape[:2], -1), dtype))
    finite = torch.stack([share.is_finite() for share in shares])
    if flags is not None:
        flags.append(finite.all())
    elif False in finite.tolist():
        wrong = shares[finite.tolist().index(False)]
        names = ", ".join(repr(network.names[place]) for place in wrong.places)
        raise UnsupportedNetwork(
            f"net: the Jacobian in {names} has NaN or infinite entries on finite inputs (a square "
            "root or norm at zero?); keep such operations away from their singular points, e.g. (x + 1e-12).sqrt()."
        )
    return Features(len(examples), shares[0].c, shares, transient)


def features_with_graph(
    network: Network,
    examples: Examples,
    weights: Mapping[int, Tensor],
    *,
    ruled: frozenset[int],
    vectorises: bool,
    dtype: torch.dtype = torch.float64,
) -> Features:
    """Features at some other weights, with the graph that leads to these and to the examples.

    Args:
        network: the network.
        examples: those of which the Jacobian is wanted, with their own graph.
        weights: values in place of θ0, by the number of the parameter.
        ruled: the parameters that the rules for operations may cover.
        vectorises: form the others by vmap rather than one example at a time.
        dtype: of the contraction.
    """
    values = [weights.get(place, value) for place, value in enumerate(network.values)]
    values = [value if value.requires_grad else value.detach().requires_grad_() for value in values]
    shares = shares_with_graph(network, examples, ruled, dtype, values, of_values=bool(weights)) if ruled else []
    rest = sorted(set(range(len(values))) - {place for share in shares for place in share.places})
    form = vectorised if vectorises else looped
    for place, gradients in zip(rest, form(network, examples, rest, values) if rest else [], strict=True):
        shares.append(Formed(place, gradients.reshape(*gradients.shape[:2], -1), dtype))
    return Features(len(examples), shares[0].c, shares)
