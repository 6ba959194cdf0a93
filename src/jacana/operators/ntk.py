"""The neural tangent kernel between two sets of data, as an operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from jacana.linearization import (
    Batch,
    Linearization,
    Prior,
    PriorStd,
    Products,
    budget,
    dense_kernel,
    diagonal_blocks,
    linearize,
    valid_memory_budget,
)
from jacana.networks import Data
from jacana.operators.operator import Operator

__all__ = ["NTK"]


@final
class NTK(Operator):
    """K = J₁ S J₂ᵀ, shape (n·c, m·c), with S = diag(``prior_std``²): the finite-width neural tangent kernel.

    ``K @ v`` costs one vjp on the second and one jvp on the first data a column; what is used again is kept.
    ``to_dense()`` contracts features in
    float64, tile by tile, and never forms the Jacobian of a layer that has a rule; ``diagonal()`` is direct.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x1: n examples; a loader or a memory map is read again at every product. Also their products, which others
            use too.
        x2: m examples, or their products; by default ``x1`` itself, and then K is symmetric.
        prior_std: a positive number, or a mapping from dotted name prefixes to numbers.
        memory_budget: as for :class:`~jacana.Jacobian`; each of two sets of data may take half of it.
        batch_size: as there.
        vectorize: as there.

    Raises:
        InvalidData: examples that cannot be used.
        InvalidOption: ``prior_std`` not positive, or not covering the selected parameters.

    References:
        Jacot, Gabriel, Hongler 2018 (arXiv 1806.07572), equation 4, at finite width and at θ0.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> x, z = torch.randn(5, 2), torch.randn(4, 2)
        >>> K = jacana.NTK(net, x, z, prior_std={"0": 0.5, "2": 2.0})
        >>> K.shape, (K @ torch.ones(12)).shape
        (torch.Size([15, 12]), torch.Size([15]))
        >>> bool((jacana.NTK(net, x).diagonal() > 0).all())
        True
    """

    def __init__(
        self,
        lin: Linearization | nn.Module,
        x1: Data | Products,
        x2: Data | Products | None = None,
        prior_std: PriorStd = 1.0,
        *,
        memory_budget: int | float | None = None,
        batch_size: int | None = None,
        vectorize: bool | None = None,
    ) -> None:
        if isinstance(x1, Products):
            lin = x1.lin
        self._lin = lin if isinstance(lin, Linearization) else linearize(lin)
        self._prior = Prior.of(self._lin.network, prior_std)
        given = valid_memory_budget(memory_budget)
        room = budget(self._lin.device) if given is None else given

        def products(x: Data | Products, name: str) -> Products:
            if isinstance(x, Products):
                return x
            most = room if x2 is None else room // 2
            return Products(self._lin, x, memory_budget=most, batch_size=batch_size, vectorize=vectorize, name=name)

        self._left = products(x1, "x1")
        self._right = self._left if x2 is None else products(x2, "x2")
        self._symmetric = x2 is None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self._left.n * self._left.c, self._right.n * self._right.c))

    @property
    def dtype(self) -> torch.dtype:
        return self._lin.dtype

    @property
    def device(self) -> torch.device:
        return self._lin.device

    @property
    def rows_together(self) -> int:
        return self._left.c

    def times(self, matrix: Float[Tensor, "mc k"]) -> Float[Tensor, "nc k"]:
        return self._left.times(self._scaled(self._right.transposed_times(matrix)))

    def transposed_times(self, matrix: Float[Tensor, "nc k"]) -> Float[Tensor, "mc k"]:
        return self._right.times(self._scaled(self._left.transposed_times(matrix)))

    def precise_times(self, matrix: Float64[Tensor, "mc k"]) -> Float64[Tensor, "nc k"]:
        """The product contracted in float64 from the very numbers that :meth:`to_dense` is made of."""
        variances = self._prior.vector(self.device).square().unsqueeze(1)
        return self._left.precise_times(variances * self._right.precise_transposed_times(matrix))

    def columns(self, index: Int64[Tensor, " k"], dtype: torch.dtype = torch.float64) -> Float64[Tensor, "nc k"]:
        """Some of the columns, contracted as :meth:`to_dense` does: of the examples that they belong to."""
        examples, place = self._owners(index)
        return self._left.kernel(self._right.some(examples), self._prior, dtype)[:, place]

    def diagonal_at(self, index: Int64[Tensor, " k"]) -> Float64[Tensor, " k"]:
        if not self._symmetric:
            return super().diagonal_at(index)
        examples, place = self._owners(index)
        blocks = diagonal_blocks(self._lin, self._left.some(examples), self._prior)
        return blocks.diagonal(dim1=1, dim2=2).flatten()[place]

    def _owners(self, index: Int64[Tensor, " k"]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " k"]]:
        """The examples that some columns belong to, and where the columns are among theirs."""
        c = self._right.c
        examples, place = torch.unique(index.div(c, rounding_mode="floor"), return_inverse=True)
        return examples, place * c + index % c

    @property
    def n_weights(self) -> int:
        """P, the columns of the root."""
        return self._lin.n_parameters

    def roots(self) -> Iterator[tuple[slice, Operator]]:
        """Which rows of K a mini-batch has, and its R = J S^½ as an operator (rows, p): K = R Rᵀ where symmetric."""
        c, std = self._left.c, self._prior.vector(self.device).unsqueeze(1)
        for start, batch in self._left.batches():
            yield slice(c * start, c * (start + len(batch))), _Root(batch, std, self.dtype)

    @property
    def T(self) -> Operator:
        return self if self._symmetric else super().T

    def to_dense(self) -> Float[Tensor, "nc mc"]:
        return dense_kernel(
            self._lin, self._left.examples(), None if self._symmetric else self._right.examples(), self._prior,
            progress=True,
        ).to(self.dtype)  # fmt: skip

    def diagonal(self) -> Float[Tensor, " nc"]:
        return self.precise_diagonal().to(self.dtype) if self._symmetric else super().diagonal()

    def precise_diagonal(self) -> Float64[Tensor, " nc"]:
        if not self._symmetric:
            return super().diagonal().to(torch.float64)
        blocks = [features.blocks(self._prior.variances) for _, _, features in self._left.features()]
        return torch.cat(blocks).diagonal(dim1=1, dim2=2).flatten()

    def _scaled(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "p k"]:
        return (self._prior.vector(self.device).square().unsqueeze(1) * matrix).to(self.dtype)


@final
class _Root(Operator):
    """J S^½ of one mini-batch."""

    def __init__(self, batch: Batch, std: Float64[Tensor, "p 1"], dtype: torch.dtype) -> None:
        self._batch, self._std, self._dtype = batch, std, dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._batch) * self._batch.n_outputs, len(self._std)))

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._std.device

    def times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "nc k"]:
        return self._batch.jvp((self._std * matrix).to(self._dtype)).flatten(0, 1)

    def transposed_times(self, matrix: Float[Tensor, "nc k"]) -> Float[Tensor, "p k"]:
        pulled = self._batch.vjp(matrix.view(len(self._batch), self._batch.n_outputs, -1))
        return (self._std * pulled).to(self._dtype)
