"""One scale, one noise: the evidence on one eigendecomposition, and its global maximum by a scan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from jacana.errors import NotPositiveDefinite
from jacana.linearization import dense_kernel
from jacana.posteriors import Observations

__all__ = ["NOISE_RANGE", "Spectrum", "spectrum", "summits"]

NOISE_RANGE = (1e-4, 1e2)
"""Bounds of a learned noise_std, in units of the root mean square of y − m."""

_PER_DECADE = 8
_REFINED = 4


@dataclass(frozen=True)
class Spectrum:
    """K = U Λ Uᵀ: eigenvalues, the squares of Uᵀr, and what lies outside the range of a K of low rank."""

    eigenvalues: np.ndarray
    squares: np.ndarray
    n_outside: int
    outside: float

    @property
    def n(self) -> int:
        """n·c."""
        return len(self.eigenvalues) + self.n_outside

    @property
    def mean_square(self) -> float:
        """rᵀr / n·c."""
        return float(self.squares.sum() + self.outside) / self.n

    def log_evidence(self, scale: float, noise: float) -> float:
        """Log N(r; 0, scale² K + noise² I)."""
        values = scale**2 * self.eigenvalues + noise**2
        fit, log_determinant = float((self.squares / values).sum()), float(np.log(values).sum())
        if self.n_outside:
            fit += self.outside / noise**2
            log_determinant += self.n_outside * math.log(noise**2)
        return -0.5 * (fit + log_determinant + self.n * math.log(2.0 * math.pi))


def spectrum(observations: Observations, *, progress: bool) -> Spectrum:
    """The spectrum on the smaller side: of K by eigendecomposition, or of J S^½ (p < n·c) by a blockwise QR."""
    lin, residual = observations.model.lin, observations.residual.reshape(-1, 1)
    if lin.n_parameters >= len(residual):
        kernel = dense_kernel(lin, observations.examples, None, observations.model.prior, progress=progress)
        values, vectors = torch.linalg.eigh(kernel)
        squares = (vectors.T @ residual).square().flatten()
        return Spectrum(values.clamp_min(0.0).cpu().numpy(), squares.cpu().numpy(), 0, 0.0)
    std = observations.model.prior.vector(lin.device)
    p = len(std)
    triangle = torch.zeros(0, p + 1, dtype=torch.float64, device=lin.device)
    start = 0
    for block in lin.blocks(observations.examples):
        rows = torch.cat([block.dense() * std, residual[start : start + block.n_rows]], dim=1)
        start += block.n_rows
        triangle = torch.linalg.qr(torch.cat([triangle, rows]), mode="r").R
    left, roots, _ = torch.linalg.svd(triangle[:, :p], full_matrices=False)
    right = triangle[:, p]
    squares = (left.T @ right).square()
    outside = max(0.0, float(right.square().sum() - squares.sum()))
    return Spectrum(roots.square().cpu().numpy(), squares.cpu().numpy(), len(residual) - len(roots), outside)


def summits(found: Spectrum, *, scale: float | None, noise: float | None) -> list[tuple[float, float]]:
    """The (scale, noise) of all local maxima of the evidence, the largest first; what is given is held.

    With both free, the scale has a closed form for each ratio noise/scale, so that one line remains; it is scanned
    from end to end and the best cells refined.

    Raises:
        NotPositiveDefinite: a noise of zero where the kernel has not full rank.
    """
    rms = found.mean_square**0.5
    low, high = (rms * bound for bound in NOISE_RANGE)
    top = float(found.eigenvalues.max()) if found.eigenvalues.size else 0.0
    seen = found.eigenvalues > top * found.n * np.finfo(float).eps
    if noise is not None:
        if noise == 0.0 and (found.n_outside or not seen.all()):
            raise NotPositiveDefinite(
                "noise_std: got zero, but the kernel of the observations has not full rank (repeated examples, or "
                "fewer parameters than observations); learn the noise, or give a noise_std above zero."
            )
        if not seen.any():
            return [(1.0, noise)]
        largest = float((found.squares[seen] / found.eigenvalues[seen]).max()) ** 0.5  # beyond it every slope is down
        smallest = 1e-4 * min(noise or largest, largest * top**0.5) / top**0.5
        bounds = (smallest, max(largest, 10.0 * smallest) * 1.01)
        return [(point, noise) for point in _line(lambda s: found.log_evidence(s, noise), bounds)]
    if scale is not None:
        return [(scale, point) for point in _line(lambda b: found.log_evidence(scale, b), (low, high))]

    def pair(ratio: float) -> tuple[float, float]:
        values = found.eigenvalues + ratio**2
        total = float((found.squares / values).sum()) + (found.outside / ratio**2 if found.n_outside else 0.0)
        best = (total / found.n) ** 0.5
        noise = min(max(best * ratio, low), high)
        return noise / ratio, noise

    reach = top**0.5 or 1.0
    return [pair(ratio) for ratio in _line(lambda r: found.log_evidence(*pair(r)), (1e-7 * reach, 1e4 * reach))]


def _line(objective: Callable[[float], float], bounds: tuple[float, float]) -> list[float]:
    """The maxima of a function of one positive number: a scan of its logarithm, then Brent in the best cells."""
    low, high = np.log(bounds[0]), np.log(bounds[1])
    grid = np.linspace(low, high, int((high - low) / np.log(10.0) * _PER_DECADE) + 2)
    values = np.array([objective(float(np.exp(point))) for point in grid])
    padded = np.concatenate([[-np.inf], np.where(np.isfinite(values), values, -np.inf), [-np.inf]])
    peaks = np.flatnonzero((padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:]))
    found = []
    for i in peaks[np.argsort(-padded[peaks + 1])][:_REFINED]:
        cell = (grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)])
        result = minimize_scalar(
            lambda t: -objective(float(np.exp(t))), bounds=cell, method="bounded", options={"xatol": 1e-8}
        )
        found.append(max((-float(result.fun), float(result.x)), (float(padded[i + 1]), float(grid[i]))))
    return [float(np.exp(point)) for _, point in sorted(found, reverse=True)]
