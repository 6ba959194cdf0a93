"""The Jacobian of a network at data, as an operator."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacana.linearization import Linearization, Products
from jacana.networks import Data
from jacana.operators.operator import Operator

__all__ = ["Jacobian"]


@final
class Jacobian(Operator):
    """J = ∂f(x; θ0)/∂θ, shape (n·c, p): row i·c + k is output k of example i.

    ``J @ v`` is one tangent pass a column, ``J.T @ u`` one forward and one backward pass a column, in mini-batches.
    What is used again is kept: later products at 2/3 of the cost of a forward and backward pass. J itself is never
    formed but by ``to_dense()``, which holds n·c·p numbers.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x: n examples; a loader or a memory map is read again at every product, so that the data need not
            fit in memory, and must give the same examples in the same order each time.
        memory_budget: bytes that may be kept from one product to the next; by default a quarter of what is free.
        batch_size: examples in one pass; by default that of the linearization.
        vectorize: whether several columns are multiplied at once; by default what was faster when it was timed.

    Raises:
        InvalidData: examples that cannot be used.
        UnsupportedNetwork: a network without a Jacobian example by example.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> J = jacana.Jacobian(net, torch.randn(5, 2))
        >>> J
        Jacobian(15 x 51, torch.float32)
        >>> (J @ torch.ones(51)).shape, (J.T @ torch.ones(15, 4)).shape, J.to_dense().shape
        (torch.Size([15]), torch.Size([51, 4]), torch.Size([15, 51]))
    """

    def __init__(
        self,
        lin: Linearization | nn.Module,
        x: Data,
        *,
        memory_budget: int | float | None = None,
        batch_size: int | None = None,
        vectorize: bool | None = None,
    ) -> None:
        self._products = Products(lin, x, memory_budget=memory_budget, batch_size=batch_size, vectorize=vectorize)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self._products.n * self._products.c, self._products.lin.n_parameters))

    @property
    def dtype(self) -> torch.dtype:
        return self._products.lin.dtype

    @property
    def device(self) -> torch.device:
        return self._products.lin.device

    def times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "nc k"]:
        return self._products.times(matrix)

    def transposed_times(self, matrix: Float[Tensor, "nc k"]) -> Float[Tensor, "p k"]:
        return self._products.transposed_times(matrix)

    def to_dense(self) -> Float[Tensor, "nc p"]:
        return self._products.lin.jacobian(self._products.examples())
