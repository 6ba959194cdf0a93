"""The log-determinant of K + Σ by preconditioned stochastic Lanczos quadrature."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import NotConverged
from jacana.operators import Covariance, Estimate, standard_normal, tridiagonal
from jacana.solvers.preconditioners import Prepared

__all__ = ["LogDeterminant", "log_determinant"]

_SMALL = 1e-3
_MOST = 100


@final
@dataclass(frozen=True)
class LogDeterminant:
    """An estimate, and what gives its gradient: tr(A⁻¹ Ȧ) ≈ mean over the probes of (A⁻¹z)ᵀ Ȧ (M⁻¹z).

    Attributes:
        estimate: of log |A|.
        solved: A⁻¹z of every probe.
        conditioned: M⁻¹z.
    """

    estimate: Estimate
    solved: Float64[Tensor, "n k"]
    conditioned: Float64[Tensor, "n k"]


def log_determinant(
    covariance: Covariance,
    prepared: Prepared | None,
    *,
    n_probes: int = 16,
    generator: torch.Generator | None = None,
) -> LogDeterminant:
    """Estimate log |A|, A = K + Σ.

        log |A| = log |M| + tr log(M^-½ A M^-½) ≈ log |M| + mean over z ~ N(0, M) of zᵀM⁻¹z · e₁ᵀ log(T_z) e₁

    T_z is the tridiagonal matrix of the conjugate gradients that solve A x = z, which go on until the quadrature has
    settled. The nearer M is to A, the smaller is the variance.

    Cost: n_probes products a step.

    Args:
        covariance: A.
        prepared: M; None for the identity.
        n_probes: at least two.
        generator: of the probes; by default one with a seed of its own.

    References:
        Ubaru, Chen, Saad 2017. Gardner, Pleiss, Bindel, Weinberger, Wilson 2018 (arXiv 1809.11165), section 4. Wenger,
        Pleiss, Hennig, Cunningham, Gardner 2022, Preconditioning for scalable GP hyperparameter optimization
        (arXiv 2107.00243).
    """
    n = len(covariance.noise)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    if prepared is None:
        probes = standard_normal(n, n_probes, generator=source, device=covariance.device)
        known = 0.0
    else:
        probes, known = prepared.sample(n_probes, source), prepared.log_determinant
    residual, x = probes.clone(), torch.zeros_like(probes)
    conditioned = residual.clone() if prepared is None else prepared.solve(residual)
    start, direction = conditioned.clone(), conditioned.clone()
    alignment = first = (residual * conditioned).sum(0)
    lengths: list[Tensor] = []
    ratios: list[Tensor] = []
    steps = 0
    while steps < min(n, _MOST):
        image = covariance.times(direction)
        length = alignment / (direction * image).sum(0)
        x += direction * length
        residual -= image * length
        conditioned = residual if prepared is None else prepared.solve(residual)
        alignment, before = (residual * conditioned).sum(0), alignment
        lengths.append(length)
        ratios.append(alignment / before)
        steps += 1
        if bool((alignment <= _SMALL**2 * first).all()):
            break
        direction = conditioned + direction * ratios[-1]
    else:
        left = float((alignment / first).amax().clamp_min(0.0).sqrt())
        if left > _SMALL:
            warnings.warn(
                f"log-determinant: not settled after {steps} steps ({left:.1e} is left, {_SMALL:.0e} asked for): it "
                "may be further off than its standard error says; take a preconditioner of larger rank, or more noise.",
                NotConverged,
                stacklevel=2,
            )
    samples = torch.stack([
        first[k] * _quadrature(torch.stack([a[k] for a in lengths]), torch.stack([b[k] for b in ratios]))
        for k in range(n_probes)
    ])  # fmt: skip
    value, error = known + float(samples.mean()), float(samples.std()) / math.sqrt(n_probes)
    return LogDeterminant(Estimate(value, error, steps * n_probes), x, start)


def _quadrature(lengths: Float64[Tensor, " m"], ratios: Float64[Tensor, " m"]) -> Tensor:
    """e₁ᵀ log(T) e₁ from the coefficients of conjugate gradients (Golub and Van Loan 2013, section 11.3.5)."""
    inverse = 1.0 / lengths
    diagonal = inverse.clone()
    diagonal[1:] += ratios[:-1] * inverse[:-1]
    beside = ratios.clamp_min(0.0).sqrt() * inverse
    values, vectors = torch.linalg.eigh(tridiagonal(diagonal, beside))
    tiny = torch.finfo(torch.float64).tiny
    return (vectors[0].square() * values.clamp_min(tiny).log()).sum()
