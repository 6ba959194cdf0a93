"""The tangent kernel as GPyTorch's linear operator: known by its products, solved by Jacana's solvers.

An operator keeps its identity. GPyTorch takes its own apart and builds them anew at every step, and what is kept on
them is lost; these give themselves back, and show it only the tensors that have gradients.
"""

from __future__ import annotations

from typing import Any, final

import torch
from linear_operator import settings
from linear_operator.operators import DiagLinearOperator, LinearOperator, to_linear_operator
from torch import Tensor

from jacana.integrations.gpytorch_tangent import System, Tangent
from jacana.linearization import group_diagonals, group_kernels
from jacana.solvers import log_determinant

__all__ = ["NoisyTangentOperator", "TangentOperator"]


class _Same:
    """Stands for GPyTorch's recipe of how to build an operator: here, it is there already."""

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator

    def __call__(self, *_: Tensor) -> LinearOperator:
        return self._operator


class _Lasting(LinearOperator):
    """An operator that gives itself back."""

    tensors: tuple[Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def requires_grad(self) -> bool:
        return any(tensor.requires_grad for tensor in self.tensors)

    def representation(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.requires_grad)

    def representation_tree(self) -> _Same:
        return _Same(self)

    def evaluate_kernel(self) -> LinearOperator:
        return self

    def clone(self) -> LinearOperator:
        return self

    def _bilinear_derivative(self, left_vecs: Tensor, right_vecs: Tensor) -> tuple[Tensor, ...]:
        left, right = (vecs.unsqueeze(1) if vecs.ndim == 1 else vecs for vecs in (left_vecs, right_vecs))
        slopes = self.slopes(left, right)
        return tuple(slope for slope, tensor in zip(slopes, self.tensors, strict=True) if tensor.requires_grad)

    def slopes(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        """The gradient of Σ_k l_kᵀ A r_k in each of ``tensors``."""
        raise NotImplementedError


@final
class TangentOperator(_Lasting):
    """K = Σ_l s_l² J₁_l J₂_lᵀ between two sets of data.

    Args:
        stds: s, one a group, with gradients.
        tangent: the network.
        x1: (n, d).
        x2: (m, d); the same tensor as ``x1`` where it is.
    """

    def __init__(self, stds: Tensor, *, tangent: Tangent, x1: Tensor, x2: Tensor) -> None:
        super().__init__(stds, tangent=tangent)
        self.tensors = (stds,)
        self.tangent, self._x1, self._x2 = tangent, x1, x2

    @property
    def is_symmetric(self) -> bool:
        """Whether it is of one set with itself."""
        return self._x1 is self._x2 or (self._x1.shape == self._x2.shape and torch.equal(self._x1, self._x2))

    @property
    def stds(self) -> Tensor:
        """S."""
        return self.tensors[0]

    def _size(self) -> torch.Size:
        c = self._c
        return torch.Size((len(self._x1) * c, len(self._x2) * c))

    @property
    def _c(self) -> int:
        lin = self.tangent.lin
        return lin.findings(lin.examples(self.tangent.inputs(self._x1[:2].detach()))).n_outputs

    def _transpose_nonbatch(self) -> LinearOperator:
        if self._x1 is self._x2:
            return self
        return TangentOperator(self.stds, tangent=self.tangent, x1=self._x2, x2=self._x1)

    def _matmul(self, rhs: Tensor) -> Tensor:
        matrix = rhs.detach().unsqueeze(1) if rhs.ndim == 1 else rhs.detach()
        one = self.tangent.products(self._x1)
        other = one if self.is_symmetric else self.tangent.products(self._x2)
        variances = self._vector().square().unsqueeze(1)
        weights = variances * other.precise_transposed_times(matrix.double())
        product = one.precise_times(weights).to(rhs.dtype)
        return product.squeeze(1) if rhs.ndim == 1 else product

    def slopes(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        one, other = self.tangent.products(self._x1), self.tangent.products(self._x2)
        ours = one.precise_transposed_times(left.detach().double())
        theirs = other.precise_transposed_times(right.detach().double())
        by_parameter = (ours * theirs).sum(1)
        sums = torch.stack([piece.sum() for piece in torch.split(by_parameter, list(self.tangent.lin.network.sizes))])
        members = torch.tensor(self.tangent.members, dtype=torch.float64, device=sums.device)
        return ((2.0 * self.stds.detach().double() * (members @ sums)).to(self.stds.dtype),)

    def _diagonal(self) -> Tensor:
        if not self.is_symmetric:
            return self.to_dense().diagonal()
        lin = self.tangent.lin
        shares = group_diagonals(lin, lin.examples(self.tangent.inputs(self._x1.detach())), self.tangent.members)
        return self._summed(shares)

    def to_dense(self) -> Tensor:
        lin = self.tangent.lin
        one = lin.examples(self.tangent.inputs(self._x1.detach()), "x1")
        other = None if self.is_symmetric else lin.examples(self.tangent.inputs(self._x2.detach()), "x2")
        return self._summed(group_kernels(lin, one, other, self.tangent.members))

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        c = self._c
        if batch_indices or not all(isinstance(index, slice) for index in (row_index, col_index)):
            return super()._getitem(row_index, col_index, *batch_indices)
        rows, columns = (_examples(index, len(x), c) for index, x in ((row_index, self._x1), (col_index, self._x2)))
        if rows is None or columns is None:  # rows of an example without its others: of few, formed
            every, beside = (
                torch.arange(size, device=self.device)[index]
                for size, index in zip(self.shape, (row_index, col_index), strict=True)
            )
            return to_linear_operator(self._formed(every)[:, beside])
        x1 = self._x1[rows]
        x2 = x1 if rows == columns and self._x1 is self._x2 else self._x2[columns]
        return TangentOperator(self.stds, tangent=self.tangent, x1=x1, x2=x2)

    def _formed(self, rows: Tensor) -> Tensor:
        """Some of the rows as a matrix."""
        examples, place = torch.unique(rows // self._c, return_inverse=True)
        some = TangentOperator(self.stds, tangent=self.tangent, x1=self._x1[examples], x2=self._x2)
        return some.to_dense()[place * self._c + rows % self._c]

    def _mul_constant(self, other: Any) -> LinearOperator:
        factor = torch.as_tensor(other, dtype=self.dtype)
        if factor.numel() != 1 or not bool(factor > 0.0):
            return super()._mul_constant(other)
        return TangentOperator(self.stds * factor.reshape(()).sqrt(), tangent=self.tangent, x1=self._x1, x2=self._x2)

    def detach(self) -> LinearOperator:
        return TangentOperator(self.stds.detach(), tangent=self.tangent, x1=self._x1, x2=self._x2)

    def __add__(self, other: Any) -> LinearOperator:
        if isinstance(other, DiagLinearOperator) and self.is_symmetric and other.shape == self.shape:
            return NoisyTangentOperator(self, other.diagonal())
        return super().__add__(other)

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        if self.is_symmetric and diag.ndim <= 1:
            return NoisyTangentOperator(self, diag.expand(self.shape[-1]))
        return super().add_diagonal(diag)

    def system(self, noise: Tensor) -> System:
        """K + Σ."""
        return self.tangent.system(self._x1, self.stds, noise)

    def _vector(self) -> Tensor:
        lin = self.tangent.lin
        stds = torch.tensor(list(self.tangent.scale(self.stds).values()), dtype=torch.float64, device=lin.device)
        return stds.repeat_interleave(torch.tensor(lin.network.sizes, device=lin.device))

    def _summed(self, shares: list[Tensor]) -> Tensor:
        total = self.stds[0].double().square() * shares[0]
        for std, share in zip(self.stds[1:], shares[1:], strict=True):
            total = total + std.double().square() * share
        return total.to(self.dtype)


@final
class NoisyTangentOperator(_Lasting):
    """A = K + Σ with Σ diagonal: above GPyTorch's max_cholesky_size solves are those of :class:`jacana.CG`.

    Log-determinants and their gradients are then means over sixteen random probes, others at every call.

    Args:
        kernel: K, of one set of data with itself.
        noise: the diagonal of Σ, with gradients.
    """

    def __init__(self, kernel: TangentOperator, noise: Tensor) -> None:
        super().__init__(kernel, noise)
        self.tensors = (kernel.stds, noise)
        self._kernel, self._noise = kernel, noise

    def _size(self) -> torch.Size:
        return self._kernel.shape

    def _transpose_nonbatch(self) -> LinearOperator:
        return self

    def _matmul(self, rhs: Tensor) -> Tensor:
        noise = self._noise.detach()
        return self._kernel._matmul(rhs) + (noise if rhs.ndim == 1 else noise.unsqueeze(1)) * rhs  # noqa: SLF001 - its own kind

    def slopes(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        return (*self._kernel.slopes(left, right), (left * right).sum(1).to(self._noise.dtype))

    def _diagonal(self) -> Tensor:
        return self._kernel.diagonal() + self._noise

    def to_dense(self) -> Tensor:
        return self._kernel.to_dense() + torch.diag(self._noise)

    def detach(self) -> LinearOperator:
        return NoisyTangentOperator(self._kernel.detach(), self._noise.detach())

    def __add__(self, other: Any) -> LinearOperator:
        if isinstance(other, DiagLinearOperator) and other.shape == self.shape:
            return NoisyTangentOperator(self._kernel, self._noise + other.diagonal())
        return super().__add__(other)

    def add_diagonal(self, diag: Tensor) -> LinearOperator:
        if diag.ndim > 1:
            return super().add_diagonal(diag)
        return NoisyTangentOperator(self._kernel, self._noise + diag.expand(len(self._noise)))

    def _solve_preconditioner(self) -> None:
        """Ours belongs to the solver."""

    def _solve(self, rhs: Tensor, preconditioner: Any = None, num_tridiag: int | None = 0) -> Tensor:
        if preconditioner is not None or num_tridiag:
            return super()._solve(rhs, preconditioner, num_tridiag)
        matrix = rhs.detach().unsqueeze(1) if rhs.ndim == 1 else rhs.detach()
        solved = self._solved(matrix).to(rhs.dtype)
        return solved.squeeze(1) if rhs.ndim == 1 else solved

    def inv_quad_logdet(
        self, inv_quad_rhs: Tensor | None = None, logdet: bool | None = False, reduce_inv_quad: bool | None = True
    ) -> tuple[Tensor, Tensor]:
        if len(self._noise) <= settings.max_cholesky_size.value():
            return super().inv_quad_logdet(inv_quad_rhs, logdet, reduce_inv_quad)
        right = self._noise.new_zeros(len(self._noise), 0) if inv_quad_rhs is None else inv_quad_rhs
        right = right.unsqueeze(1) if right.ndim == 1 else right
        fits, determinant = _Terms.apply(self, bool(logdet), right, *self.tensors)  # type: ignore[no-untyped-call]
        return fits.sum() if reduce_inv_quad else fits, determinant

    def _solved(self, matrix: Tensor) -> Tensor:
        system = self._kernel.system(self._noise)
        return self._kernel.tangent.solver.solve(system.covariance, matrix.double(), prepared=system.prepared).x

    def _determined(self) -> tuple[float, Tensor, Tensor]:
        system = self._kernel.system(self._noise)
        found = log_determinant(system.covariance, system.prepared, generator=self._kernel.tangent.generator)
        return found.estimate.value, found.solved, found.conditioned


class _Terms(torch.autograd.Function):
    """bᵀ A⁻¹ b of each column and log |A|, with gradients −αᵀ Ȧ α + 2 αᵀ ḃ and tr(A⁻¹ Ȧ)."""

    @staticmethod
    def forward(
        ctx: Any, operator: NoisyTangentOperator, logdet: bool, right: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        solved = operator._solved(right)  # noqa: SLF001 - the other half of it
        value, left, conditioned = 0.0, solved[:, :0], solved[:, :0]
        if logdet:
            value, left, conditioned = operator._determined()  # noqa: SLF001
        ctx.operator = operator
        ctx.save_for_backward(solved, left, conditioned)
        return (right.double() * solved).sum(0).to(right.dtype), tensors[0].new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        by_fit, by_determinant = gradients
        solved, left, conditioned = ctx.saved_tensors
        share = by_determinant.double() / max(1, left.shape[1])
        slopes = ctx.operator.slopes(
            torch.cat([-solved * by_fit.double(), share * left], 1), torch.cat([solved, conditioned], 1)
        )
        return (None, None, (2.0 * solved * by_fit.double()).to(by_fit.dtype), *slopes)


def _examples(rows: slice, n: int, c: int) -> slice | None:
    """The examples of a range of rows; None where an example is cut in two, or rows are left out between."""
    start, stop, step = rows.indices(n * c)
    return None if step != 1 or start % c or stop % c else slice(start // c, stop // c)
