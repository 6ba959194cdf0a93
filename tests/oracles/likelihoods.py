"""Likelihoods by their definitions: densities with scipy, curvatures by expectation over y of the squared score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]
Outcomes = Callable[[Array], list[tuple[Array, float]]]
"""What y may be at one example's function values, with probabilities (or weights of a quadrature)."""


def categorical(f: Array) -> list[tuple[Array, float]]:
    return [(np.array(k), float(p)) for k, p in enumerate(scipy.special.softmax(f))]


def bernoulli(f: Array) -> list[tuple[Array, float]]:
    found = []
    for bits in np.ndindex(*(2 for _ in f)):
        y = np.array(bits, dtype=float)
        found.append((y, float(np.prod(np.where(y == 1, scipy.special.expit(f), scipy.special.expit(-f))))))
    return found


def poisson(f: Array) -> list[tuple[Array, float]]:
    counts = np.arange(80)
    masses = [scipy.stats.poisson.pmf(counts, np.exp(value)) for value in f]
    grid = np.ndindex(*(len(counts) for _ in f))
    return [(np.array(k, dtype=float), float(np.prod([m[i] for m, i in zip(masses, k, strict=True)]))) for k in grid]


def gaussian(std: Array) -> Outcomes:
    """Gauss and Hermite's quadrature, exact for polynomials."""

    def outcomes(f: Array) -> list[tuple[Array, float]]:
        nodes, weights = np.polynomial.hermite_e.hermegauss(9)
        weights = weights / weights.sum()
        grid = np.ndindex(*(len(nodes) for _ in f))
        return [(f + std * nodes[list(k)], float(np.prod(weights[list(k)]))) for k in grid]

    return outcomes


def heteroscedastic(f: Array) -> list[tuple[Array, float]]:
    d = len(f) // 2
    return gaussian(np.exp(0.5 * f[d:]))(f[:d])


def gauss_newton(J: Array, H: Array) -> Array:
    """Σᵢ Jᵢᵀ Hᵢ Jᵢ for J (n·c, p) and H (n, c, c)."""
    blocks = J.reshape(len(H), H.shape[1], -1)
    return sum(block.T @ h @ block for block, h in zip(blocks, H, strict=True))


def curvature(kind: str, f: Array, std: float = 1.0) -> Array:
    """H (n, c, c) from the formulas of the textbook."""
    if kind == "categorical":
        pi = scipy.special.softmax(f, axis=1)
        return np.stack([np.diag(p) - np.outer(p, p) for p in pi])
    diagonal = {
        "bernoulli": lambda: scipy.special.expit(f) * scipy.special.expit(-f),
        "poisson": lambda: np.exp(f),
        "gaussian": lambda: np.full_like(f, std**-2),
        "heteroscedastic": lambda: np.concatenate(
            [np.exp(-f[:, f.shape[1] // 2 :]), np.full_like(f[:, f.shape[1] // 2 :], 0.5)], axis=1
        ),
    }[kind]()
    return np.stack([np.diag(row) for row in diagonal])
