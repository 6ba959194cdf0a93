"""Sharpest: how sure what is said of new class labels should be."""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar
from torch import Tensor

from jacana.likelihoods import Likelihood, Tempered
from jacana.posteriors import Cavity

__all__ = ["sharpest"]

_SPREAD = 1.0
"""Of log τ: what is said of new labels is about as sure as the posterior."""

_MOST = 20.0


def sharpest(cavity: Cavity, likelihood: Likelihood, y: Tensor) -> tuple[float, float]:
    """The τ with the greatest Σ_i log E p(y_i | τ f_i) − ½ (log τ)², and the nats that it gains over one.

    Args:
        cavity: what is said of each example by a posterior that has not seen it.
        likelihood: p(y | f).
        y: the labels.
    """

    def objective(log_tau: float) -> float:
        probability = cavity.log_probability(Tempered(likelihood, 1.0, math.exp(log_tau)), y).sum()
        return 0.5 * (log_tau / _SPREAD) ** 2 - float(probability)

    most = math.log(_MOST)
    found = minimize_scalar(objective, bounds=(-most, most), method="bounded", options={"xatol": 1e-3})
    gain = objective(0.0) - float(found.fun)
    return (math.exp(float(found.x)), gain) if gain > 0.0 else (1.0, 0.0)
