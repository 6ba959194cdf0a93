"""Estimates of what a matrix would tell if it were formed: its trace and its log-determinant, with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.operators.normal import standard_normal
from jacana.operators.operator import Operator
from jacana.operators.spectrum import lanczos, refuse_unsymmetric, square_size, tridiagonal

__all__ = ["Estimate", "estimate_log_determinant", "estimate_trace"]


@final
@dataclass(frozen=True)
class Estimate:
    """A random estimate.

    Attributes:
        value: without bias, or as near as the method has it.
        std_error: its standard error, estimated from the same products; zero where the value is exact.
        products: how many products were made.

    Example:
        >>> import jacana, torch
        >>> found = jacana.estimate_trace(jacana.NTK(torch.nn.Linear(2, 1), torch.zeros(3, 2)))
        >>> found
        Estimate(value=3.0, std_error=0.0, products=3)
    """

    value: float
    std_error: float
    products: int


def estimate_trace(operator: Operator, n_products: int = 60, *, generator: torch.Generator | None = None) -> Estimate:
    """Tr A from products alone, by XTrace: the trace on a random range, and Hutchinson's estimate of what it leaves.

        tr̂ᵢ = tr(Qᵢᵀ A Qᵢ) + ωᵢᵀ (I − QᵢQᵢᵀ) A (I − QᵢQᵢᵀ) ωᵢ,     Qᵢ an orthonormal basis of A Ω without column i

    averaged over the columns of Ω, each of which serves the others' range and its own estimate. The error falls as the
    spectrum does: fast for kernels and Fisher matrices. Where as many products as rows are allowed it is exact.

    Cost: ``n_products`` products in two blocks, and n · n_products numbers.

    Args:
        operator: square.
        n_products: an even number, at least 4.
        generator: of Ω; by default one with a seed of its own, so that the answer is repeatable.

    Raises:
        InvalidData: not square.
        InvalidOption: too few products.

    References:
        Epperly, Tropp, Webber 2024, XTrace: Making the most of every sample in stochastic trace estimation
        (arXiv 2301.07825), section 2.3.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1)).double()
        >>> K = jacana.NTK(net, torch.randn(200, 2))
        >>> found = jacana.estimate_trace(K, 40)
        >>> bool(abs(found.value - K.diagonal().sum()) <= 1e-3 * found.value)
        True
    """
    n = square_size(operator)
    if isinstance(n_products, bool) or not isinstance(n_products, int) or n_products < 4:
        raise InvalidOption(f"n_products: got {n_products!r}; expected a whole number of at least 4.")
    m = int(n_products) // 2
    if 2 * m >= n:
        return Estimate(float(operator.diagonal().double().sum()), 0.0, n)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    omega = standard_normal(n, m, generator=source, device=operator.device)
    omega = omega * (math.sqrt(n) / omega.norm(dim=0))

    def times(matrix: Tensor) -> Tensor:
        return (operator @ matrix.to(operator.dtype)).to(torch.float64)

    product = times(omega)
    basis, triangle = torch.linalg.qr(product)
    image = times(basis)
    within = basis.T @ image
    pivots = triangle.diagonal().abs()
    if bool(pivots.min() <= n * torch.finfo(torch.float64).eps * pivots.max()):  # all of the range has been met
        return Estimate(float(within.trace()), 0.0, 2 * m)
    # The basis without column i is Q without direction sᵢ, the normalised column of R⁻ᵀ.
    identity = torch.eye(m, dtype=torch.float64, device=operator.device)
    left_out = torch.linalg.solve_triangular(triangle, identity, upper=True).T
    left_out = left_out / left_out.norm(dim=0)
    inside = basis.T @ omega
    along = (left_out * inside).sum(0)
    known = inside - left_out * along
    in_range = within.trace() - (left_out * (within @ left_out)).sum(0)
    beyond = (
        along * (left_out * triangle).sum(0) - (known * (image.T @ omega)).sum(0) + (known * (within @ known)).sum(0)
    )
    samples = in_range + beyond * (n - m + 1) / (n - known.square().sum(0))
    return Estimate(float(samples.mean()), float(samples.std() / math.sqrt(m)), 2 * m)


def estimate_log_determinant(
    operator: Operator,
    shift: float | int = 0.0,
    *,
    n_probes: int = 16,
    n_steps: int = 50,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Log det(A + shift · I) of a positive semidefinite operator, by stochastic Lanczos quadrature.

        tr log(A + s I)  ≈  n / q Σ_j e₁ᵀ log(T_j + s I) e₁,     T_j from Lanczos' method started at a random ω_j

    The standard error is that of the random probes; the quadrature's own falls with ``n_steps`` as fast as that of
    conjugate gradients on A + s I, and is below it where that converges within as many steps.

    Cost: n_probes · n_steps products.

    Args:
        operator: symmetric, positive semidefinite.
        shift: s, for instance the noise variance; positive where A may be singular.
        n_probes: q, at least 2.
        n_steps: of Lanczos' method.
        generator: of the probes; by default one with a seed of its own.

    Raises:
        InvalidData: not square.
        InvalidOption: a negative shift, too few probes or steps, or a matrix that is not positive definite.

    References:
        Ubaru, Chen, Saad 2017, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, algorithm 1.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1)).double()
        >>> K = jacana.NTK(net, torch.randn(100, 2))
        >>> found = jacana.estimate_log_determinant(K, 0.1)
        >>> exact = torch.logdet(K.to_dense() + 0.1 * torch.eye(100))
        >>> bool(abs(found.value - exact) <= 5 * found.std_error + 1e-6)
        True
    """
    n = square_size(operator)
    for name, value, least in (("n_probes", n_probes, 2), ("n_steps", n_steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidOption(f"{name}: got {value!r}; expected a whole number of at least {least}.")
    if isinstance(shift, bool) or not (math.isfinite(shift) and shift >= 0.0):
        raise InvalidOption(f"shift: got {shift!r}; expected a finite number, zero or larger (a variance).")
    refuse_unsymmetric(operator)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    samples, products = [], 0
    for _ in range(n_probes):
        probe = standard_normal(n, generator=source, device=operator.device)
        _, diagonal, beside = lanczos(operator, probe, min(n, n_steps))
        products += len(diagonal)
        values, vectors = torch.linalg.eigh(tridiagonal(diagonal + shift, beside))
        if bool((values <= 0.0).any()):
            raise InvalidOption(
                f"operator: got an eigenvalue of {float(values.min()):.3g} after the shift; a log-determinant needs "
                "positive ones. Give a larger shift."
            )
        samples.append(n * (vectors[0].square() * values.log()).sum())
    found = torch.stack(samples)
    return Estimate(float(found.mean()), float(found.std() / math.sqrt(n_probes)), products)
