"""A Gaussian process with an RBF kernel on the inputs: exact, in float64, hyper-parameters by evidence.

GPyTorch is not used here because it turns to loose conjugate gradients above 800 points without a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

__all__ = ["RBFKernel", "fit_rbf", "rbf_gp"]

RESTARTS = 5
"""Starting points, tried on at most `SCOUTS` examples before the best is polished on all that may be used."""

SCOUTS = 300


@dataclass(frozen=True)
class RBFKernel:
    r"""The kernel :math:`a^2 e^{-\sum_d (x_d - x'_d)^2 / 2 l_d^2} + b^2` and noise, in the data's own units.

    Attributes:
        lengths: One length scale an input dimension, (d,).
        amplitude: Prior standard deviation of the smooth part.
        constant: Prior standard deviation of the offset, which is measured from ``centre``.
        noise_std: Standard deviation of the noise.
        centre: What targets are measured from.
        log_evidence: Log marginal likelihood of the data that it was fitted on.
    """

    lengths: np.ndarray
    amplitude: float
    constant: float
    noise_std: float
    centre: float = 0.0
    log_evidence: float = float("nan")

    def __call__(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """The covariance (n, m) of the latent function, without noise."""
        covariance = np.exp(-0.5 * _square_distances(x1 / self.lengths, x2 / self.lengths))
        covariance *= self.amplitude**2
        covariance += self.constant**2
        return covariance


def rbf_gp(
    x: ArrayLike,
    y: ArrayLike,
    new_x: ArrayLike,
    *,
    max_hyper: int = 2000,
    seed: int = 0,
    kernel: RBFKernel | None = None,
    block: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit, condition on all points exactly, predict.

    Args:
        x: Inputs, (n, d).
        y: Targets, (n,).
        new_x: Where to predict, (m, d).
        max_hyper: Hyper-parameters come from the first ``max_hyper`` points.
        seed: For the starting points of the fit.
        kernel: A kernel from `fit_rbf` to use as it is; with nested data sets one fit serves all larger ones.
        block: New points a block, which bounds the memory.

    Returns:
        Mean and standard deviation of observations, each (m,).
    """
    x, y, new_x = (np.asarray(a, dtype=np.float64) for a in (x, y, new_x))
    kernel = kernel or fit_rbf(x[:max_hyper], y[:max_hyper], seed=seed)
    covariance = kernel(x, x)
    covariance[np.diag_indices(len(x))] += kernel.noise_std**2
    factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
    weights = cho_solve((factor, True), y - kernel.centre, check_finite=False)
    prior = kernel.amplitude**2 + kernel.constant**2 + kernel.noise_std**2
    mean, variance = np.empty(len(new_x)), np.empty(len(new_x))
    for start in range(0, len(new_x), block):
        cross = kernel(x, new_x[start : start + block])
        mean[start : start + block] = kernel.centre + cross.T @ weights
        half = solve_triangular(factor, cross, lower=True, overwrite_b=True, check_finite=False)
        variance[start : start + block] = prior - (half**2).sum(axis=0)
    return mean, np.sqrt(variance)


def fit_rbf(x: ArrayLike, y: ArrayLike, *, seed: int = 0, start: RBFKernel | None = None) -> RBFKernel:
    """Length scales, amplitude, offset and noise by the log marginal likelihood and its exact gradient (L-BFGS-B).

    Args:
        x: Inputs, (n, d).
        y: Targets, (n,).
        seed: For the starting points.
        start: A kernel fitted on a part of the data, tried as one more starting point.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    centre, spread = float(y.mean()), float(y.std()) or 1.0
    widths = x.std(axis=0)
    widths[widths == 0.0] = 1.0
    z, r = x / widths, (y - centre) / spread
    d = x.shape[1]
    # Logarithms of: d lengths (in widths), amplitude, offset, noise (in spreads). The floor of the noise, 1e-3 of the
    # spread of the targets, keeps the covariance factorisable; the bounds are otherwise wider than any data need.
    bounds = [(np.log(1e-2), np.log(1e2))] * d + [(np.log(1e-2), np.log(1e2))] * 2 + [(np.log(1e-3), np.log(3.0))]
    low, high = np.array(bounds).T
    rng = np.random.default_rng(seed)
    middle = np.log(np.array([0.5] * d + [1.0, 0.3, 0.1]))
    starts = [middle, *(middle + rng.normal(0.0, 1.0, (RESTARTS - 1, d + 3)))]
    if start is not None:
        scaled = [*(start.lengths / widths), *(np.array([start.amplitude, start.constant, start.noise_std]) / spread)]
        starts.append(np.log(scaled))

    def polish(point: np.ndarray, n: int) -> tuple[float, np.ndarray]:
        found = minimize(
            _loss, np.clip(point, low, high), args=(z[:n], r[:n]), jac=True, method="L-BFGS-B", bounds=bounds
        )
        return float(found.fun), found.x

    candidates = [polish(point, SCOUTS) for point in starts]
    if len(z) > SCOUTS:
        candidates = [polish(min(candidates, key=lambda item: item[0])[1], len(z))]
    value, best = min(candidates, key=lambda item: item[0])
    amplitude, constant, noise = (float(v) for v in np.exp(best[d:]) * spread)
    evidence = -value - len(y) * float(np.log(spread))
    return RBFKernel(np.exp(best[:d]) * widths, amplitude, constant, noise, centre, evidence)


def _loss(point: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative log marginal likelihood and its gradient in the logarithms."""
    n, d = x.shape
    lengths, (amplitude, constant, noise) = np.exp(point[:d]), np.exp(point[d:])
    smooth = amplitude**2 * np.exp(-0.5 * _square_distances(x / lengths, x / lengths))
    covariance = smooth + constant**2
    covariance[np.diag_indices(n)] += noise**2
    try:
        factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:  # too far out for a line search to go; it turns back
        return 1e25, np.zeros_like(point)
    alpha = cho_solve((factor, True), y, check_finite=False)
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor)).sum()) + 0.5 * n * float(np.log(2.0 * np.pi))
    inner = cho_solve((factor, True), np.eye(n), overwrite_b=True, check_finite=False)
    inner -= np.outer(alpha, alpha)  # the gradient is half the trace of this against each derivative
    trace, total = float(np.trace(inner)), float(inner.sum())
    inner *= smooth
    slopes = [0.5 * float((inner * _square_distances(c, c)).sum()) for c in (x[:, [k]] / lengths[k] for k in range(d))]
    return value, np.array([*slopes, float(inner.sum()), constant**2 * total, noise**2 * trace])


def _square_distances(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Sums of squared differences (n, m), coordinate by coordinate: no cancellation, as the expanded square has."""
    squares = np.zeros((len(x1), len(x2)))
    for k in range(x1.shape[1]):
        squares += (x1[:, k, None] - x2[None, :, k]) ** 2
    return squares
