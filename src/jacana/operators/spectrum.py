"""Spectrum: Lanczos with full reorthogonalisation, and the largest eigenpairs by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption
from jacana.operators.normal import standard_normal
from jacana.operators.operator import Operator

__all__ = ["Eigenpairs", "lanczos", "refuse_unsymmetric", "square_size", "top_eigenpairs", "tridiagonal"]

_MARGIN = 8


@final
@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues of a symmetric operator.

    Attributes:
        values: (k,), the largest first, float64.
        vectors: (n, k), orthonormal, float64.
        residuals: (k,), ‖A v − λ v‖ of each, as far as products in the operator's dtype tell.
        products: how many products were made.

    Example:
        >>> import jacana, torch
        >>> found = jacana.top_eigenpairs(jacana.NTK(torch.nn.Linear(2, 1).double(), torch.zeros(3, 2)), 1)
        >>> round(float(found.values[0]), 6), found.vectors.shape
        (3.0, torch.Size([3, 1]))
    """

    values: Float64[Tensor, " k"]
    vectors: Float64[Tensor, "n k"]
    residuals: Float64[Tensor, " k"]
    products: int


def top_eigenpairs(
    operator: Operator,
    k: int,
    *,
    rtol: float | None = None,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The k largest eigenvalues of a symmetric operator with their eigenvectors, by Lanczos' method.

    The basis is orthogonalised against itself twice at each step, in float64, so that no eigenvalue appears twice. An
    eigenvalue that is several is found once for each time that the start vector and rounding tell them apart.

    Cost: one product a step, some times k steps, and n · steps numbers in float64 of memory.

    Args:
        operator: symmetric, of size n; for instance ``jacana.Fisher(...)`` or ``jacana.NTK(lin, x)``.
        k: how many.
        rtol: of the residuals, relative to the largest eigenvalue; by default √eps of the operator's dtype.
        max_products: stop after as many; by default n.
        generator: of the start vector; by default one with a seed of its own, so that the answer is repeatable.

    Raises:
        InvalidData: not square, or not symmetric.
        InvalidOption: ``k`` not from 1 to n.

    References:
        Golub and Van Loan 2013, Matrix Computations, sections 10.1 and 10.3.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
        >>> F = jacana.Fisher(net, torch.randn(50, 2), jacana.Categorical())
        >>> found = jacana.top_eigenpairs(F, 3)
        >>> bool(torch.allclose(F @ found.vectors, found.vectors * found.values, atol=1e-5))
        True
    """
    n = square_size(operator)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise InvalidOption(f"k: got {k!r}; expected a whole number from 1 to {n}.")
    tolerance = torch.finfo(operator.dtype).eps ** 0.5 if rtol is None else rtol
    if not 0.0 < tolerance < 1.0:
        raise InvalidOption(f"rtol: got {rtol!r}; expected a number between 0 and 1.")
    refuse_unsymmetric(operator)
    most = n if max_products is None else max(k, min(n, max_products))
    start = _unit(n, operator.device, generator)
    steps = min(most, 2 * k + _MARGIN)
    basis, diagonal, beside = lanczos(operator, start, steps)
    while True:
        values, weights = torch.linalg.eigh(tridiagonal(diagonal, beside))
        order = values.argsort(descending=True)[:k]
        residuals = (beside[-1] * weights[-1, order]).abs()
        done = len(order) == k and bool((residuals <= tolerance * values.abs().max()).all())
        if done or len(diagonal) >= most:
            return Eigenpairs(values[order], basis[:, : len(diagonal)] @ weights[:, order], residuals, len(diagonal))
        basis, diagonal, beside = lanczos(operator, start, min(most, 2 * len(diagonal)), (basis, diagonal, beside))


def lanczos(
    operator: Operator,
    start: Float64[Tensor, " n"],
    steps: int,
    before: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Float64[Tensor, "n t"], Float64[Tensor, " s"], Float64[Tensor, " s"]]:
    """An orthonormal basis Q of the Krylov space, and the tridiagonal T = Qᵀ A Q in it.

    Where the space is exhausted a new direction is taken, with zero beside the diagonal.

    Args:
        operator: symmetric.
        start: the first direction.
        steps: the size of T.
        before: what an earlier call with fewer steps returned.

    Returns:
        Q with one column more than steps (as long as there is one), the diagonal of T, and what is beside it; the last
        of these couples T to what comes next.
    """
    n = len(start)
    basis = [start / start.norm()] if before is None else list(before[0].unbind(1))
    diagonal = [] if before is None else list(before[1].unbind())
    beside = [] if before is None else list(before[2].unbind())
    generator = torch.Generator().manual_seed(n)
    size = 0.0
    while len(diagonal) < steps:
        product = (operator @ basis[len(diagonal)].to(operator.dtype)).to(torch.float64)
        diagonal.append(basis[len(diagonal)] @ product)
        size = max(size, float(product.norm()))
        known = torch.stack(basis, 1)
        for _ in range(2):
            product = product - known @ (known.T @ product)
        length = product.norm()
        exhausted = float(length) <= torch.finfo(operator.dtype).eps * size
        beside.append(torch.zeros_like(length) if exhausted else length)
        if len(basis) == n:
            break
        if exhausted:
            product = _unit(n, start.device, generator)
            for _ in range(2):
                product = product - known @ (known.T @ product)
            length = product.norm()
        basis.append(product / length)
    return torch.stack(basis, 1), torch.stack(diagonal), torch.stack(beside)


def square_size(operator: Operator) -> int:
    """N of an n by n operator.

    Raises:
        InvalidData: it is not square.
    """
    rows, columns = operator.shape
    if rows != columns:
        raise InvalidData(f"operator: got shape {(rows, columns)}; expected a square, symmetric one.")
    return rows


def refuse_unsymmetric(operator: Operator) -> None:
    """Hold A w against Aᵀ w for one random w, where the operator is not symmetric by its make.

    Raises:
        InvalidData: they differ.
    """
    if operator.T is operator:
        return
    vector = _unit(operator.shape[0], operator.device, None).to(operator.dtype)
    ours, transposed = operator @ vector, operator.T @ vector
    if bool((ours - transposed).norm() > torch.finfo(operator.dtype).eps ** 0.5 * ours.norm()):
        raise InvalidData("operator: A @ w and A.T @ w differ; expected a symmetric operator. Take (A + A.T) * 0.5.")


def tridiagonal(diagonal: Float64[Tensor, " s"], beside: Float64[Tensor, " s"]) -> Float64[Tensor, "s s"]:
    """T of :func:`lanczos` as a matrix."""
    inner = beside[:-1]
    return torch.diag(diagonal) + torch.diag(inner, 1) + torch.diag(inner, -1)


def _unit(n: int, device: torch.device, generator: torch.Generator | None) -> Float64[Tensor, " n"]:
    source = torch.Generator().manual_seed(0) if generator is None else generator
    return standard_normal(n, generator=source, device=device)
