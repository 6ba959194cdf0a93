"""Batch: products with the Jacobian of one mini-batch, by what is kept of it or from scratch."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor

from jacana.linearization.columns import Columns
from jacana.linearization.doubled import Doubled
from jacana.linearization.linearization import Linearization
from jacana.networks import Examples, differentiable

__all__ = ["Allowance", "Batch"]

_COLUMNS_WORTH_A_GRAPH = 2


@final
class Allowance:
    """Bytes that may be kept."""

    def __init__(self, room: int) -> None:
        self._room = room

    def take(self, nbytes: int) -> bool:
        """Whether as many are left; then they are taken."""
        if nbytes > self._room:
            return False
        self._room -= nbytes
        return True


@final
class Batch:
    """J and Jᵀ of a mini-batch at θ0.

    J V comes by the route of the probe, or, where the batch is kept or many columns come at once, through a kept graph,
    which is built at the cost of a column. Jᵀ U goes through the graph of one forward pass.

    Args:
        lin: the linearization.
        examples: the batch.
        allowance: of memory; a batch that gets its share is meant to be kept.
        columns: decides how several columns are multiplied.
    """

    def __init__(self, lin: Linearization, examples: Examples, allowance: Allowance, columns: Columns) -> None:
        self._lin, self._examples, self._allowance, self._columns = lin, examples, allowance, columns
        self._findings = lin.findings(examples)
        self._keeping = lin.keeping(examples)
        self.keeps = allowance.take(len(examples) * self._keeping.graph)
        self._graph: Doubled | None = None
        self._doubles: bool | None = None

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def n_outputs(self) -> int:
        """C."""
        return self._findings.n_outputs

    @property
    def output(self) -> Float[Tensor, "n c"]:
        """f(x; θ0)."""
        with differentiable():
            return self._recorded().output

    def jvp(self, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        """J V."""
        if vectors.shape[1] == 0:
            return vectors.new_zeros(len(self), self.n_outputs, 0)
        if self._through_graph(vectors.shape[1]):
            with differentiable():
                graph = self._recorded()
                kind = ("push", *self._kind)
                product = self._columns(kind, graph.push, graph.push_several, vectors, self._lin.network.eps)
        else:
            with self._findings.route.context():
                product = self._findings.route.jvp(self._lin.network, self._examples, vectors)
        return product.to(self._lin.dtype)

    def vjp(self, cotangents: Float[Tensor, "n c k"]) -> Float[Tensor, "p k"]:
        """Jᵀ U."""
        if cotangents.shape[2] == 0:
            return cotangents.new_zeros(self._lin.n_parameters, 0)
        with differentiable():
            graph = self._recorded()
            kind = ("pull", *self._kind)
            return self._columns(kind, graph.pull, graph.pull_several, cotangents, self._lin.network.eps)

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
