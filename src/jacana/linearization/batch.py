"""Batch: products with the Jacobian of one mini-batch, by what is kept of it or from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from jacana.linearization.columns import Columns
from jacana.linearization.doubled import Doubled
from jacana.linearization.factors import Factors
from jacana.linearization.linearization import Linearization
from jacana.linearization.proof import agrees
from jacana.linearization.routes import Rows
from jacana.networks import Examples, differentiable

__all__ = ["Allowance", "Batch", "Trials"]

_COLUMNS_WORTH_A_GRAPH = 2
_PASSES_AN_OUTPUT = 5  # beyond the first: in these as much is spent as the factors' backward passes cost

Trials = dict[str, bool]
"""Which ways to J v have been tried on a batch, and whether they agreed with reverse mode."""


@final
class Allowance:
    """Bytes that may be kept."""

    def __init__(self, room: int) -> None:
        self._room = room

    def has(self, nbytes: int) -> bool:
        """Whether as many are left."""
        return nbytes <= self._room

    def take(self, nbytes: int) -> bool:
        """Whether as many are left; then they are taken."""
        if not self.has(nbytes):
            return False
        self._room -= nbytes
        return True


@final
class Batch:
    """J and Jᵀ of a mini-batch at θ0.

    J V comes by the route of the probe, or, where the batch is kept or many columns come at once, through a kept graph,
    which is built at the cost of a column. Jᵀ U goes through the graph of one forward pass. A batch that is kept for
    long goes over to the factors of its per-example gradients, where these are faster: once as much has been spent on
    products as they cost to make. A way to J V is held against Jᵀ U before it is used on a batch for the first time;
    where it fails, rows serve.

    Args:
        lin: the linearization.
        examples: the batch.
        allowance: of memory; a batch that gets its share is meant to be kept.
        columns: decides how several columns are multiplied.
        trials: what has been tried on this batch before.
    """

    def __init__(
        self, lin: Linearization, examples: Examples, allowance: Allowance, columns: Columns, trials: Trials
    ) -> None:
        self._lin, self._examples, self._allowance, self._columns = lin, examples, allowance, columns
        self._trials = trials
        self._findings = lin.findings(examples)
        self._keeping = lin.keeping(examples)
        self._graph: Doubled | None = None
        self._doubles: bool | None = None
        self._factors: Factors | None = None
        self._output: Tensor | None = None
        self.keeps = allowance.take(len(examples) * self._keeping.graph)
        self._columns_left = _PASSES_AN_OUTPUT * (self._findings.n_outputs - 1) if self.keeps else math.inf

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def n_outputs(self) -> int:
        """The number of outputs."""
        return self._findings.n_outputs

    @property
    def output(self) -> Float[Tensor, "n c"]:
        """f(x; θ0)."""
        if self._output is not None:
            return self._output
        with differentiable():
            return self._recorded().output

    def jvp(self, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        """J V."""
        if vectors.shape[1] == 0:
            return vectors.new_zeros(len(self), self.n_outputs, 0)
        factors = self._by_factors(vectors.shape[1])
        if factors is not None:
            return factors.push(vectors)
        ways: dict[str, Callable[[Tensor], Tensor]] = {"route": self._by_route, "graph": self._by_graph}
        if self._through_graph(vectors.shape[1]):
            ways = {"graph": self._by_graph, "route": self._by_route}
        for name, way in ways.items():
            if self._right(name, way):
                return way(vectors).to(self._lin.dtype)
        with differentiable():
            return Rows().jvp(self._lin.network, self._examples, vectors).to(self._lin.dtype)

    def vjp(self, cotangents: Float[Tensor, "n c k"]) -> Float[Tensor, "p k"]:
        """Jᵀ U."""
        if cotangents.shape[2] == 0:
            return cotangents.new_zeros(self._lin.n_parameters, 0)
        factors = self._by_factors(cotangents.shape[2])
        if factors is not None:
            return factors.pull(cotangents)
        with differentiable():
            graph = self._recorded()
            kind = ("pull", *self._kind)
            return self._columns(kind, graph.pull, graph.pull_several, cotangents, self._lin.network.eps)

    def _by_factors(self, k: int) -> Factors | None:
        """The factors, if they are there, or if it is time to make them and they are right on this batch."""
        self._columns_left -= k
        if self._columns_left >= 0:
            return self._factors
        self._columns_left = math.inf
        least = len(self) * self._keeping.graph
        more = len(self) * self._findings.factor_bytes - least
        if not self._allowance.has(more) or not self._lin.factored(self._examples):
            return None
        factors = Factors(self._lin.network, self._findings, self._examples)
        if self._right("factors", factors.push):
            self._allowance.take(more)
            self._output = self.output
            self._factors, self._graph = factors, None
        return self._factors

    def _by_route(self, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        with self._findings.route.context():
            return self._findings.route.jvp(self._lin.network, self._examples, vectors)

    def _by_graph(self, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        with differentiable():
            graph = self._recorded()
            kind = ("push", *self._kind)
            return self._columns(kind, graph.push, graph.push_several, vectors, self._lin.network.eps)

    def _right(self, name: str, way: Callable[[Tensor], Tensor]) -> bool:
        """Whether a way has been right on this batch, or is now."""
        if name == "graph" and not self._keeping.doubles:
            return False
        if name == "route" and isinstance(self._findings.route, Rows):
            return True
        if name not in self._trials:
            with differentiable():
                graph = self._recorded()
                try:
                    self._trials[name] = agrees(
                        self._lin.network,
                        graph.pull,
                        lambda v: way(v.unsqueeze(1)).squeeze(2),
                        len(self),
                        self.n_outputs,
                    )
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # noqa: BLE001 - whatever torch raises where a derivative is missing
                    self._trials[name] = False
        return self._trials[name]

    @property
    def _kind(self) -> tuple[object, ...]:
        return (*self._examples.kind, self._examples.shapes, len(self))

    def _recorded(self) -> Doubled:
        if self._graph is None:
            self._graph = Doubled(self._lin.network, self._examples, written_out=self._keeping.written_out)
        return self._graph

    def _through_graph(self, k: int) -> bool:
        """Whether J V goes through the graph of the backward pass: 2 units a column and 2 to build it.

        The route takes 3 a column. Where the batch is kept the answer is always the same, and so is every digit.
        """
        if not self._keeping.doubles:
            return False
        if not self.keeps:
            return k > _COLUMNS_WORTH_A_GRAPH
        if self._doubles is None:
            self._doubles = self._allowance.take(len(self) * self._keeping.double)
        return self._doubles or k > _COLUMNS_WORTH_A_GRAPH
