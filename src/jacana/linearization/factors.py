"""Factors: per-example gradients of a batch, kept factored, as a way to multiply with J and Jᵀ."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.clock import seconds
from jacana.linearization.doubled import Doubled
from jacana.linearization.features import features
from jacana.linearization.keeping import Keeping
from jacana.linearization.probe import Findings
from jacana.networks import Examples, Network, differentiable

__all__ = ["Factors", "are_faster"]

_BLOCK_BYTES = 2**28
_TIMED, _TIMED_BYTES = 256, 2**26
_TRIALS = 3  # the first is to warm up
_MOST = 8
"""How many times the memory of the graphs the factors may take."""

_CLEARLY = 0.6
"""Factors take a backward pass an output to make: they must save so much at every product."""


@final
class Factors:
    """J V and Jᵀ U from y = W a at every layer: G (V a) and Gᵀ U a, one unit of arithmetic each where graphs take two.

    Args:
        network: the network.
        findings: what the probe found for such examples.
        examples: the batch.
    """

    def __init__(self, network: Network, findings: Findings, examples: Examples) -> None:
        self._sizes, self._dtype, self._c = network.sizes, network.dtype, findings.n_outputs
        at_once = max(1, _BLOCK_BYTES // max(1, findings.bytes_per_example))
        with differentiable():
            self._blocks = [
                features(network, some, ruled=findings.ruled, vectorises=findings.vectorises, dtype=self._dtype)
                for some in examples.batches(at_once)
            ]

    def pull(self, cotangents: Float[Tensor, "n c k"]) -> Float[Tensor, "p k"]:
        """Jᵀ U."""
        rows = torch.split(cotangents.flatten(0, 1).to(self._dtype), [block.n_rows for block in self._blocks])
        with torch.no_grad():
            total, *others = [block.pull(part) for block, part in zip(self._blocks, rows, strict=True)]
            for other in others:
                total = total.add_(other)
        return total

    def push(self, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        """J V."""
        vectors = vectors.to(self._dtype)
        with torch.no_grad():
            product = torch.cat([block.push(vectors, self._sizes) for block in self._blocks])
        return product.view(-1, self._c, vectors.shape[1])


def are_faster(network: Network, findings: Findings, keeping: Keeping, examples: Examples) -> bool:
    """Whether J v and Jᵀu are clearly faster by kept factors than through kept graphs: by the clock."""
    if findings.factor_bytes > _MOST * (keeping.graph + keeping.double):
        return False
    some = examples[: max(2, min(_TIMED, _TIMED_BYTES // max(1, findings.factor_bytes)))].detached()
    u = torch.ones(len(some), findings.n_outputs, 1, dtype=network.dtype, device=network.device)
    v = torch.ones(network.n_parameters, 1, dtype=network.dtype, device=network.device)
    factors = Factors(network, findings, some)
    with differentiable():
        graph = Doubled(network, some, written_out=keeping.written_out)

        def through_graph() -> None:
            graph.pull(u[:, :, 0])
            if keeping.doubles:
                graph.push(v[:, 0])

        def by_factors() -> None:
            factors.pull(u)
            if keeping.doubles:
                factors.push(v)

        ours, theirs = (
            min([seconds(way, network.device) for _ in range(_TRIALS)][1:]) for way in (by_factors, through_graph)
        )
        return ours < _CLEARLY * theirs
