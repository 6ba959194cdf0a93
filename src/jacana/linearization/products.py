"""Products: J V and Jᵀ U over all of the data, batch by batch, with what is used again kept in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from jacana.errors import InvalidData, InvalidOption
from jacana.linearization.batch import Allowance, Batch, Trials
from jacana.linearization.columns import Columns
from jacana.linearization.features import Features
from jacana.linearization.kernel import dense_kernel
from jacana.linearization.linearization import Linearization, linearize, valid_batch_size
from jacana.linearization.memory import budget
from jacana.linearization.prior import Prior
from jacana.networks import Data, Examples, Source, as_source

__all__ = ["Products", "valid_memory_budget"]

_BATCH_BYTES = 2**30


@final
class Products:
    """The two products with the Jacobian at fixed data.

    What a batch computes once for all products is kept where it fits in the budget of memory, first the graphs of the
    backward passes, then those of the tangent passes; the other batches compute it again each time.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x: n examples; a loader or a memory map is read again at every pass, so that the data need not fit in memory.
        memory_budget: bytes that may be kept from one product to the next; by default a quarter of what is free.
        batch_size: examples in one pass; by default that of the linearization, less where they take much memory.
        vectorize: whether several columns are multiplied at once; by default what was faster when it was timed.
        name: what errors call the data.
    """

    def __init__(
        self,
        lin: Linearization | nn.Module,
        x: Data | Source,
        *,
        memory_budget: int | float | None = None,
        batch_size: int | None = None,
        vectorize: bool | None = None,
        name: str = "x",
    ) -> None:
        if vectorize is not None and not isinstance(vectorize, bool):
            raise InvalidOption(f"vectorize: got {vectorize!r}; expected True, False, or None to have it timed.")
        given = valid_memory_budget(memory_budget)
        self.lin = lin if isinstance(lin, Linearization) else linearize(lin)
        with torch.inference_mode(False):
            self.source = as_source(x, self.lin.network.input_dtype, self.lin.device, name)
        self._columns = self.lin.columns if vectorize is None else Columns(vectorize)
        findings = self.lin.findings(self.head)
        self.n, self.c = len(self.source), findings.n_outputs
        self._room = budget(self.lin.device) if given is None else given
        self._trials: dict[int, Trials] = {}
        self._forget()
        self._size = valid_batch_size(batch_size) or min(
            self.lin.batch_size, max(1, _BATCH_BYTES // max(1, self.lin.keeping(self.head).graph))
        )

    def _forget(self) -> None:
        """Keep nothing."""
        self._allowance = Allowance(self._room)
        self._kept: dict[int, Batch] = {}
        self._whole = False

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_allowance", "_kept", "_whole")
        return {key: value for key, value in vars(self).items() if key not in kept}  # graphs cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def head(self) -> Examples:
        """Some of the examples."""
        return self.source.head

    def examples(self) -> Examples:
        """All of the examples in memory."""
        return self.source.gathered()

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Where each batch starts, and the batch; where all are kept, the data are not read again."""
        if self._whole:
            yield from self._kept.items()
            return
        start = 0
        for examples in self.source.batches(self._size):
            batch = self._kept.get(start)
            if batch is None:
                trials = self._trials.setdefault(start, {})
                batch = Batch(self.lin, examples, self._allowance, self._columns, trials)
                if batch.n_outputs != self.c:
                    raise InvalidData(
                        f"x: the network gives {self.c} outputs for the first examples and {batch.n_outputs} for those "
                        f"from {start} on; expected as many for all."
                    )
                if batch.keeps:
                    self._kept[start] = batch
            yield start, batch
            start += len(examples)
        self._whole = sum(len(batch) for batch in self._kept.values()) == self.n

    def times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "nc k"]:
        """J V."""
        return torch.cat([batch.jvp(matrix) for _, batch in self.batches()]).flatten(0, 1)

    def transposed_times(self, matrix: Float[Tensor, "nc k"]) -> Float[Tensor, "p k"]:
        """Jᵀ U."""
        cotangents = matrix.view(self.n, self.c, -1)
        return self.summed(lambda start, batch: cotangents[start : start + len(batch)])

    def summed(self, cotangents: Callable[[int, Batch], Float[Tensor, "n c k"]]) -> Float[Tensor, "p k"]:
        """Σ Jᵢᵀ Uᵢ over the batches, with the cotangents that a function gives for each."""
        total: Tensor | None = None
        for start, batch in self.batches():
            product = batch.vjp(cotangents(start, batch))
            total = product if total is None else total.add_(product)
        if total is None:
            raise InvalidData("x: got no examples; pass at least one.")
        return total

    def pieces(self) -> Iterator[Examples]:
        """All of the examples, at once where they are in memory, else piece by piece."""
        return self.source.batches(self.n)

    def some(self, index: Int64[Tensor, " k"]) -> Examples:
        """The examples with these numbers, which ascend."""
        return self.source.some(index)

    def kernel(self, others: Examples, prior: Prior, dtype: torch.dtype = torch.float64) -> Float64[Tensor, "nc mc"]:
        """J S J′ᵀ with m other examples, contracted from their features in that dtype."""
        kernel = torch.empty(self.n * self.c, len(others) * self.c, dtype=torch.float64, device=self.lin.device)
        start = 0
        for piece in self.pieces():  # each at once in its place: what is left among large blocks cuts memory to pieces
            stop = start + len(piece) * self.c
            kernel[start:stop] = dense_kernel(self.lin, piece, others, prior, dtype=dtype)
            start = stop
        return kernel

    def precise_times(self, matrix: Float64[Tensor, "p k"]) -> Float64[Tensor, "nc k"]:
        """J V contracted in float64."""
        return torch.cat([block.push(matrix, self.lin.network.sizes) for _, _, block in self.features()])

    def precise_transposed_times(self, matrix: Float64[Tensor, "nc k"]) -> Float64[Tensor, "p k"]:
        """Jᵀ U contracted in float64."""
        total = torch.zeros(self.lin.n_parameters, matrix.shape[1], dtype=torch.float64, device=self.lin.device)
        for start, _, block in self.features():
            total += block.pull(matrix[start * self.c : start * self.c + block.n_rows])
        return total

    def features(self) -> Iterator[tuple[int, Examples, Features]]:
        """Per-example gradients block by block: where a block starts, its examples, and their features."""
        start = 0
        for piece in self.pieces():
            for low, high in self.lin.bounds(piece):
                examples = piece[low:high]
                yield start, examples, self.lin.features(examples)
                start += len(examples)


def valid_memory_budget(memory_budget: Any) -> int | None:
    """Bytes, or None.

    Raises:
        InvalidOption: anything else.
    """
    if memory_budget is None:
        return None
    if (
        isinstance(memory_budget, bool)
        or not isinstance(memory_budget, int | float)
        or not 0 <= memory_budget < math.inf
    ):
        raise InvalidOption(f"memory_budget: got {memory_budget!r}; expected bytes, zero to keep nothing, or None.")
    return int(memory_budget)
