"""Laplace's approximation as a textbook prints it: densities by scipy, the mode by L-BFGS, dense p by p matrices.

Everywhere: J (n·c, p), s (p,) the prior standard deviations of the weights, mean (n, c) the prior mean at the data, y
the targets, weights (n,) how often an example counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from tests.oracles.likelihoods import curvature, gauss_newton

Array = NDArray[np.float64]


def log_likelihood(kind: str, f: Array, y: Array, std: ArrayLike = 1.0) -> Array:
    """Log p(yᵢ | fᵢ), (n,)."""
    if kind == "categorical":
        return scipy.special.log_softmax(f, axis=1)[np.arange(len(f)), np.asarray(y, dtype=int)]
    if kind == "bernoulli":
        return np.where(y == 1, scipy.special.log_expit(f), scipy.special.log_expit(-f)).sum(1)
    if kind == "poisson":
        return scipy.stats.poisson.logpmf(y, np.exp(f)).sum(1)
    if kind == "gaussian":
        return scipy.stats.norm.logpdf(y, f, std).sum(1)
    d = f.shape[1] // 2
    return scipy.stats.norm.logpdf(y, f[:, :d], np.exp(0.5 * f[:, d:])).sum(1)


def score(kind: str, f: Array, y: Array, std: ArrayLike = 1.0) -> Array:
    """∂ log p(yᵢ | fᵢ) / ∂fᵢ, (n, c)."""
    if kind == "categorical":
        return np.eye(f.shape[1])[np.asarray(y, dtype=int)] - scipy.special.softmax(f, axis=1)
    if kind == "bernoulli":
        return y - scipy.special.expit(f)
    if kind == "poisson":
        return y - np.exp(f)
    if kind == "gaussian":
        return (y - f) / np.square(std)
    d = f.shape[1] // 2
    squares = (y - f[:, :d]) ** 2 * np.exp(-f[:, d:])
    return np.concatenate([(y - f[:, :d]) * np.exp(-f[:, d:]), 0.5 * (squares - 1.0)], axis=1)


@dataclass(frozen=True)
class Laplace:
    """The mode δ̂, log p there less the penalty, the covariance of the weights (p, p) and the log-evidence."""

    weights: Array
    value: float
    covariance: Array
    log_evidence: float

    def at(self, J: Array, mean: Array) -> tuple[Array, Array]:
        """Mean (m, c) and covariance (m·c, m·c) of the latent elsewhere."""
        return mean + (J @ self.weights).reshape(mean.shape), J @ self.covariance @ J.T


def laplace(
    kind: str,
    J: Array,
    s: Array,
    mean: Array,
    y: Array,
    weights: ArrayLike = 1.0,
    std: ArrayLike = 1.0,
    start: Array | None = None,
) -> Laplace:
    """argmax Σ wᵢ log p(yᵢ | m + J δ) − ½ δᵀS⁻¹δ by L-BFGS over δ = s v; (S⁻¹ + Jᵀ H J)⁻¹ with Fisher's curvature H."""
    w = np.broadcast_to(np.asarray(weights, dtype=float), (len(mean),))
    G = J * s

    def latent(v: Array) -> Array:
        return mean + (G @ v).reshape(mean.shape)

    def loss(v: Array) -> tuple[float, Array]:
        f = latent(v)
        value = float(w @ log_likelihood(kind, f, y, std)) - 0.5 * float(v @ v)
        return -value, v - G.T @ (w[:, None] * score(kind, f, y, std)).reshape(-1)

    v = np.zeros(G.shape[1]) if start is None else start
    for _ in range(5):  # again from where the line search gave up
        v = scipy.optimize.minimize(
            loss,
            v,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 50_000, "ftol": 0, "gtol": 1e-11},
        ).x
    slope = np.linalg.norm(loss(v)[1])
    assert slope < 1e-5 * (1 + np.linalg.norm(v)), f"the oracle did not reach the mode: a slope of {slope:.1e} is left"
    if kind == "gaussian":
        H = np.stack([np.diag(row**-2.0) for row in np.broadcast_to(np.asarray(std, dtype=float), mean.shape)])
    else:
        H = curvature(kind, latent(v))
    A = np.eye(len(v)) + gauss_newton(G, w[:, None, None] * H)
    value = -loss(v)[0]
    covariance = s[:, None] * np.linalg.inv(A) * s
    return Laplace(s * v, value, covariance, value - 0.5 * float(np.linalg.slogdet(A)[1]))
