"""The Jacobian of a network at data, as an operator."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jacana.linearization import Linearization, linearize
from jacana.networks import Data
from jacana.operators.operator import Operator

__all__ = ["Jacobian"]


@final
class Jacobian(Operator):
    """J = ∂f(x; θ0)/∂θ, shape (n·c, p): row i·c + k is output k of example i.

    ``J @ v`` costs one tangent pass a column, ``J.T @ u`` one forward and one backward pass a column, in mini-batches;
    J itself is never formed but by ``to_dense()``, which holds n·c·p numbers.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x: n examples.

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

    def __init__(self, lin: Linearization | nn.Module, x: Data) -> None:
        self._lin = lin if isinstance(lin, Linearization) else linearize(lin)
        self._examples = self._lin.examples(x).copied()
        rows = len(self._examples) * self._lin.findings(self._examples).n_outputs
        self._shape = torch.Size((rows, self._lin.n_parameters))

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self._lin.dtype

    @property
    def device(self) -> torch.device:
        return self._lin.device

    def times(self, matrix: Float[Tensor, "p k"]) -> Float[Tensor, "nc k"]:
        return self._lin.jvp(self._examples, matrix).flatten(0, 1)

    def transposed_times(self, matrix: Float[Tensor, "nc k"]) -> Float[Tensor, "p k"]:
        if matrix.shape[1] == 0:
            return matrix.new_zeros(self.shape[1], 0)
        product = self._lin.vjp(self._examples, matrix)
        return product.unsqueeze(1) if product.ndim == 1 else product

    def to_dense(self) -> Float[Tensor, "nc p"]:
        return self._lin.jacobian(self._examples)
