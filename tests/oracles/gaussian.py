"""Gaussian inference as a textbook prints it: dense float64 matrices, a side each, and once more with fifty digits.

Everywhere: J (n·c, p) and J_new (m·c, p) are Jacobians, s (p,) the prior standard deviations of the weights, mean
(n, c) the prior mean at the data, y (n, c) the targets and sigma the noise standard deviation: scalar, (c,) or (n, c).
"""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """Mean (m, c) and covariance (m·c, m·c) of the latent function at new points."""

    mean: Array
    covariance: Array

    @property
    def variance(self) -> Array:
        return np.diag(self.covariance).reshape(self.mean.shape)


@dataclass(frozen=True)
class LeftOut:
    """Each example from all others: mean (n, c), covariance (n, c, c) of the observation, log density (n,)."""

    mean: Array
    covariance: Array
    log_probability: Array


def noise_matrix(sigma: ArrayLike, n: int, c: int) -> Array:
    """Σ (n·c, n·c), example-major."""
    return np.diag(np.square(np.broadcast_to(np.asarray(sigma, dtype=np.float64), (n, c)).reshape(-1)))


def condition_on_functions(
    J: Array, s: Array, mean: Array, y: Array, sigma: ArrayLike, J_new: Array, mean_new: Array
) -> Posterior:
    """m* + K* (K + Σ)⁻¹ (y − m) and K** − K* (K + Σ)⁻¹ K*ᵀ."""
    n, c = y.shape
    A = (J * s**2) @ J.T + noise_matrix(sigma, n, c)
    cross = (J_new * s**2) @ J.T
    covariance = (J_new * s**2) @ J_new.T - cross @ np.linalg.solve(A, cross.T)
    new = mean_new + (cross @ np.linalg.solve(A, (y - mean).reshape(-1))).reshape(mean_new.shape)
    return Posterior(new, covariance)


def condition_on_weights(
    J: Array, s: Array, mean: Array, y: Array, sigma: ArrayLike, J_new: Array, mean_new: Array
) -> Posterior:
    """δ̂ = (Jᵀ Σ⁻¹ J + S⁻¹)⁻¹ Jᵀ Σ⁻¹ (y − m); m* + J* δ̂ and J* (Jᵀ Σ⁻¹ J + S⁻¹)⁻¹ J*ᵀ."""
    n, c = y.shape
    precision = 1 / np.diag(noise_matrix(sigma, n, c))
    A = (J.T * precision) @ J + np.diag(s**-2.0)
    weights = np.linalg.solve(A, J.T @ (precision * (y - mean).reshape(-1)))
    return Posterior(mean_new + (J_new @ weights).reshape(mean_new.shape), J_new @ np.linalg.solve(A, J_new.T))


def condition_exactly(
    J: Array, s: Array, mean: Array, y: Array, sigma: ArrayLike, J_new: Array, mean_new: Array, digits: int = 60
) -> Posterior:
    """The same with `digits` decimal digits, for systems that float64 cannot solve: for small n·c only."""
    n, c = y.shape
    with mpmath.workdps(digits):
        S = mpmath.diag([mpmath.mpf(float(v)) ** 2 for v in s])
        sigmas = np.broadcast_to(np.asarray(sigma, dtype=np.float64), (n, c)).reshape(-1)
        noise = mpmath.diag([mpmath.mpf(float(v)) ** 2 for v in sigmas])
        left, new = mpmath.matrix(J.tolist()), mpmath.matrix(J_new.tolist())
        cross = new * S * left.T
        pairs = zip(y.flat, mean.flat, strict=True)
        residual = mpmath.matrix([mpmath.mpf(float(target)) - mpmath.mpf(float(prior)) for target, prior in pairs])
        inverse = mpmath.inverse(left * S * left.T + noise)
        shift = cross * (inverse * residual)
        covariance = new * S * new.T - cross * inverse * cross.T
        flat = np.array([float(shift[i]) for i in range(J_new.shape[0])])
        dense = np.array([[float(covariance[i, j]) for j in range(J_new.shape[0])] for i in range(J_new.shape[0])])
    return Posterior(mean_new + flat.reshape(mean_new.shape), dense)


def log_evidence(J: Array, s: Array, mean: Array, y: Array, sigma: ArrayLike) -> float:
    """log N(y; m, K + Σ) by scipy's multivariate normal."""
    n, c = y.shape
    covariance = (J * s**2) @ J.T + noise_matrix(sigma, n, c)
    return float(scipy.stats.multivariate_normal(mean.reshape(-1), covariance).logpdf(y.reshape(-1)))


def leave_one_out_by_refitting(J: Array, s: Array, mean: Array, y: Array, sigma: ArrayLike) -> LeftOut:
    """n posteriors, each of n − 1 examples; with none left, the prior."""
    n, c = y.shape
    sigmas = np.broadcast_to(np.asarray(sigma, dtype=np.float64), (n, c))
    rows = J.reshape(n, c, -1)
    means, covariances, densities = [], [], []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        if others:
            left = rows[others].reshape(len(others) * c, -1)
            fitted = condition_on_functions(left, s, mean[others], y[others], sigmas[others], rows[i], mean[[i]])
        else:
            fitted = Posterior(mean[[i]], (rows[i] * s**2) @ rows[i].T)
        observed = fitted.covariance + np.diag(sigmas[i] ** 2)
        means.append(fitted.mean[0])
        covariances.append(observed)
        densities.append(scipy.stats.multivariate_normal(fitted.mean[0], observed).logpdf(y[i]))
    return LeftOut(np.stack(means), np.stack(covariances), np.array(densities, dtype=np.float64))
