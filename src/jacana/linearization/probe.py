"""The probe: find, for one network on one kind of input, the first route that works *and is right*."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jacana.errors import UnsupportedNetwork
from jacana.linearization.features import Features, features
from jacana.linearization.keeping import graph_bytes
from jacana.linearization.routes import ROUTES, Route, Rows, rows
from jacana.networks import Examples, Network, audit, differentiable

__all__ = ["Findings", "probe"]

_MAX_ROWS = 6
_MAX_NUMBERS = 2**25

_LOST = 1.5
"""Memory taken over memory counted: what an allocator loses, and what operations need for a moment."""


@dataclass(frozen=True)
class Findings:
    """What the probe found.

    Attributes:
        n_outputs: c.
        flat: whether the network returns (n,) rather than (n, c).
        route: the way to J v.
        ruled: the parameters, by number, of which the rules for operations give the right per-example gradients.
        vectorises: whether vmap does, as far as it was needed.
        held: the bytes that the features of one example hold, by the parameters of each share.
        passing: the bytes that computing them takes beside, for one example.
    """

    n_outputs: int
    flat: bool
    route: Route
    ruled: frozenset[int]
    vectorises: bool
    held: Mapping[tuple[int, ...], int]
    passing: int

    @property
    def bytes_per_example(self) -> int:
        """What one example takes while its features are computed, these included."""
        return self.passing + self.factor_bytes

    @property
    def factor_bytes(self) -> int:
        """What the features of one example hold."""
        return sum(self.held.values())


def probe(network: Network, examples: Examples, *, thorough: bool = False) -> Findings:
    """Audit the network on ``examples`` and choose how its derivatives are computed.

    Whether vmap serves the parameters that rules cover is found out only where ``thorough``: it is the slowest part,
    and not needed while the rules serve.

    Every candidate is held against rows of plain reverse mode (J *is* what reverse mode gives) with a random vector
    scaled so that each parameter tensor weighs the same, to √eps relative.

    Raises:
        UnsupportedNetwork: the audit refuses the network, or even plain reverse mode fails.
        InvalidData: the network fails on such inputs.
    """
    with differentiable():
        c, flat = audit(network, examples)
        few = examples[[0, len(examples) - 1]] if len(examples) > 1 else examples[:1]
        generator = torch.Generator().manual_seed(0)
        most = max(1, min(_MAX_ROWS, _MAX_NUMBERS // network.n_parameters))
        chosen = torch.randperm(c, generator=generator)[:most].tolist()
        before = [value.clone() for value in network.values]
        try:
            if not network.record(few)[0].requires_grad:
                raise RuntimeError("the output does not depend on the selected parameters")
            truth = [rows(network, few[i : i + 1], chosen) for i in range(len(few))]
        except Exception as error:
            raise UnsupportedNetwork(
                f"net: plain reverse mode fails on the network: {type(error).__name__}: {error}. Its output must be "
                "differentiable in the selected parameters: no detach(), no numpy, no rounding on the way."
            ) from error
        if any(not torch.equal(a, b) for a, b in zip(before, network.values, strict=True)):
            raise UnsupportedNetwork("net: the forward pass rewrites the network's own parameters; remove that step.")
        if not all(bool(torch.isfinite(piece).all()) for row in truth for piece in row):
            raise UnsupportedNetwork(
                "net: the Jacobian has NaN or infinite entries on finite inputs (a square root or norm at zero?); "
                "keep these operations away from their singular points, e.g. (x + 1e-12).sqrt()."
            )
        vector, expected, scale = _test_vector(network, truth, generator)
        route = next(r for r in (kind() for kind in ROUTES) if _right(r, network, few, vector, chosen, expected, scale))
        every = frozenset(range(len(network.values)))
        ruled, found, vectorises = every, None, False
        if not thorough:
            right, found = _right_places(network, few, truth, chosen, every, vectorises=True)
            vectorises = found is not None and any(share.origin == "autodiff" for share in found.shares)
            found = found if right == every else None
        if found is None:
            vectorises = _right_places(network, few, truth, chosen, frozenset(), vectorises=True)[0] == every
            ruled, found = _right_places(network, few, truth, chosen, every, vectorises=vectorises)
        graph = graph_bytes(network, few) or 0
        if found is None:
            sizes: dict[tuple[int, ...], int] = {(place,): 4 * c * size for place, size in enumerate(network.sizes)}
            return Findings(c, flat, route, ruled, vectorises, sizes, graph)
        held = {share.places: share.nbytes // len(few) for share in found.shares}
        if thorough:  # any parameter of any block may fall to autodiff
            sizes = {
                (place,): max(4, value.element_size()) * c * value.numel() for place, value in enumerate(network.values)
            }
            return Findings(c, flat, route, ruled, vectorises, sizes, int(_LOST * (1 + c) * graph))
        by_autodiff = any(share.origin == "autodiff" for share in found.shares)
        passing = found.transient // len(few) + (1 + c if by_autodiff and vectorises else 1) * graph
        return Findings(c, flat, route, ruled, vectorises, held, int(_LOST * passing))


def _test_vector(
    network: Network, truth: list[tuple[Tensor, ...]], generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """A vector v that weighs every parameter tensor alike, J v on the rows at hand, and the scale of its terms."""
    pieces, terms = [], []
    for i, value in enumerate(network.values):
        stacked = torch.stack([row[i].reshape(len(row[i]), -1) for row in truth])
        size = float(stacked.double().norm(dim=2).max())
        noise = torch.randn(value.numel(), generator=generator, dtype=torch.float64).to(value.device)
        piece = (noise / size if size > 0 else noise).to(value.dtype)
        pieces.append(piece)
        terms.append(stacked.double() @ piece.double())
    products = torch.stack(terms)
    return network.flatten(pieces), products.sum(0), float(products.abs().sum(0).max()) or 1.0


def _right(
    route: Route, network: Network, few: Examples, vector: Tensor, chosen: list[int], expected: Tensor, scale: float
) -> bool:
    if isinstance(route, Rows):
        return True
    try:
        with route.context():
            product = route.jvp(network, few, vector.unsqueeze(1))[:, chosen, 0]
    except Exception:  # noqa: BLE001 - whatever torch raises where a derivative is missing; the next route is tried
        return False
    tolerance = network.eps**0.5 * scale
    return bool(((product.double() - expected).abs() <= tolerance).all())


def _row(truth: list[tuple[Tensor, ...]], place: int, i: int) -> Tensor:
    """The gradients of one output in one parameter, a row an example."""
    return torch.stack([row[place][i].flatten() for row in truth]).double()


def _right_places(
    network: Network,
    few: Examples,
    truth: list[tuple[Tensor, ...]],
    chosen: list[int],
    ruled: frozenset[int],
    *,
    vectorises: bool,
) -> tuple[frozenset[int], Features | None]:
    """The parameters whose gradients come out right this way, and the features of the probed examples."""
    try:
        found = features(network, few, ruled=ruled, vectorises=vectorises)
    except Exception:  # noqa: BLE001 - whatever torch raises where an operation has no batching rule
        return frozenset(), None
    tolerance = network.eps**0.5
    right = set()
    for place in range(len(network.values)):
        allowed = tolerance * max(float(row[place].abs().max()) for row in truth)
        if all(
            bool(((found.of[place].of_output(k).dense(place) - _row(truth, place, i)).abs() <= allowed).all())
            for i, k in enumerate(chosen)
        ):
            right.add(place)
    return frozenset(right), found
