"""Keeping: whether the graphs of a batch can be kept for later products, how they are made, and what they take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jacana.linearization.doubled import Doubled
from jacana.linearization.routes import Route, Rows
from jacana.networks import Examples, Network

__all__ = ["Keeping", "graph_bytes", "keeping"]

_UNKNOWN = 2**31
"""Where it cannot be counted: too much to be kept, for more than a few examples."""


@dataclass(frozen=True)
class Keeping:
    """What was found.

    Attributes:
        written_out: whether operations are written out, rather than left as they are.
        doubles: whether the graph of the backward pass gives the right J v.
        graph: the bytes that the graph of the forward pass keeps for one example.
        double: what that of the backward pass keeps beside.
    """

    written_out: bool
    doubles: bool
    graph: int
    double: int


def keeping(network: Network, few: Examples, route: Route) -> Keeping:
    """Find out on a few examples, by comparison with reverse mode and with the route that the probe chose."""
    out, leaves = network.record(few)
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    truth = torch.autograd.grad(out, leaves, u, allow_unused=True, materialize_grads=True)
    sizes = [float(torch.linalg.vector_norm(piece)) for piece in truth]
    noise = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for value in network.values]
    vector = network.flatten([piece / size if size > 0.0 else piece for piece, size in zip(noise, sizes, strict=True)])
    pushed = None
    if not isinstance(route, Rows):
        with route.context():
            pushed = route.jvp(network, few, vector.unsqueeze(1))[:, :, 0]
    for written_out in (True, False):
        kept = _pulls(network, few, u, truth, written_out=written_out)
        if kept is None:
            continue
        doubles = pushed is not None and _pushes(network, kept, vector, pushed)
        if doubles or not written_out:
            graph = graph_bytes(network, few)
            both = graph_bytes(network, few, written_out=written_out, doubled=True) if doubles else graph
            if graph is None or both is None:
                return Keeping(written_out, doubles, _UNKNOWN, _UNKNOWN)
            return Keeping(written_out, doubles, graph, max(0, both - graph))
    return Keeping(False, False, graph_bytes(network, few) or _UNKNOWN, 0)


def graph_bytes(network: Network, few: Examples, *, written_out: bool = False, doubled: bool = False) -> int | None:
    """What one example's forward pass keeps for the backward pass, with ``doubled`` also what that one keeps.

    None where it cannot be counted.
    """
    own = {value.untyped_storage().data_ptr() for value in network.values}
    kept: dict[int, int] = {}
    saved: list[Tensor] = []  # and not in the graph, where an output and its node would hold each other for good

    def count(tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        saved.append(tensor)
        return len(saved) - 1

    try:
        with torch.autograd.graph.saved_tensors_hooks(count, saved.__getitem__):
            graph = Doubled(network, few, written_out=written_out)
            if doubled:
                graph.double()
    except Exception:  # noqa: BLE001 - torch.func inside the network does not go with hooks
        return None
    finally:
        saved.clear()
    return sum(kept.values()) // len(few)


def _pulls(
    network: Network, few: Examples, u: Tensor, truth: tuple[Tensor, ...], *, written_out: bool
) -> Doubled | None:
    """The kept graph, if it gives the right Jᵀu."""
    try:
        kept = Doubled(network, few, written_out=written_out)
        pulled = network.split(kept.pull(u))
    except Exception:  # noqa: BLE001 - whatever torch raises where an operation does not go with the mode
        return None
    tolerance = network.eps**0.5
    right = all(
        bool(((ours - theirs).abs() <= tolerance * torch.linalg.vector_norm(theirs)).all())
        for ours, theirs in zip(pulled, truth, strict=True)
    )
    return kept if right else None


def _pushes(network: Network, kept: Doubled, vector: Tensor, pushed: Tensor) -> bool:
    """Whether it gives the right J v, twice: some layers release what a pass has used."""
    try:
        twice = [kept.push(vector) for _ in range(2)]
    except Exception:  # noqa: BLE001 - a derivative that is missing, or a graph that is gone
        return False
    tolerance = network.eps**0.5 * pushed.abs().amax()
    return all(bool(((product - pushed).abs() <= tolerance).all()) for product in twice)
