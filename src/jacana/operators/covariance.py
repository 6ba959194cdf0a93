"""The covariance of observations, K + Σ, as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from jacana.errors import InvalidData
from jacana.operators.operator import Operator

__all__ = ["Covariance", "rounded"]


@final
class Covariance(Operator):
    """A = K + Σ with Σ diagonal: the system that a posterior in function space solves.

    Products take and give float64; those with K run in its own dtype, those of :meth:`precise_times` in float64.

    Args:
        kernel: K, symmetric and positive semidefinite.
        noise: the variances on the diagonal of Σ, (n,).
        by_products: whether what is solved for may be held against what was asked for by products in K's dtype, because
            it is used through such products alone. By default entries of K are used beside it, and what these are
            contracted from decides.
    """

    def __init__(self, kernel: Operator, noise: Float64[Tensor, " n"], *, by_products: bool = False) -> None:
        if kernel.shape != (len(noise), len(noise)):
            raise InvalidData(f"noise: got {len(noise)} variances for a kernel of shape {tuple(kernel.shape)}.")
        self.kernel, self.noise, self.by_products = kernel, noise, by_products

    @property
    def shape(self) -> torch.Size:
        return self.kernel.shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    @property
    def device(self) -> torch.device:
        return self.kernel.device

    @property
    def rows_together(self) -> int:
        return self.kernel.rows_together

    def times(self, matrix: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        product = rounded(self.kernel.times, matrix, self.kernel.dtype)
        return product.addcmul_(self.noise.unsqueeze(1), matrix)

    def transposed_times(self, matrix: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return self.times(matrix)

    def precise_times(self, matrix: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        return self.kernel.precise_times(matrix).addcmul_(self.noise.unsqueeze(1), matrix)

    def columns(self, index: Int64[Tensor, " k"], dtype: torch.dtype = torch.float64) -> Float64[Tensor, "n k"]:
        columns = self.kernel.columns(index, dtype)
        columns[index, torch.arange(len(index), device=index.device)] += self.noise[index]
        return columns

    @property
    def T(self) -> Operator:
        return self

    def diagonal(self) -> Float64[Tensor, " n"]:
        return self.kernel.precise_diagonal() + self.noise

    def to_dense(self) -> Float64[Tensor, "n n"]:
        return self.kernel.to_dense().to(torch.float64) + torch.diag(self.noise)


def rounded(
    times: Callable[[Float[Tensor, "m k"]], Float[Tensor, "n k"]], matrix: Float64[Tensor, "m k"], dtype: torch.dtype
) -> Float64[Tensor, "n k"]:
    """A product in a dtype that may have a narrower range than the matrix."""
    size = matrix.abs().amax(0)
    size = torch.where(size > 0.0, size, 1.0)
    return times((matrix / size).to(dtype)).to(torch.float64).mul_(size)
