"""Figures of merit for predictions, and how figures of several seeds are put together.

Everything here takes and gives numpy arrays or floats; a standard deviation is one of *observations*, noise included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, t

from jacana import metrics

__all__ = [
    "PairedDifference",
    "Summary",
    "accuracy",
    "coverage",
    "ece",
    "gaussian_nll",
    "mean_and_standard_error",
    "mse",
    "nll",
    "paired_difference",
    "rmse",
]


class Summary(NamedTuple):
    """A mean over repetitions, its standard error, and how many repetitions there were."""

    mean: float
    standard_error: float
    repetitions: int


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        # Without this, (n,) against (n, 1) broadcasts to (n, n) and gives a plausible, wrong figure.
        raise ValueError(f"shapes differ: got {a.shape} and {b.shape}, expected equal shapes; reshape one of them")
    return a, b


def mse(mean: ArrayLike, y: ArrayLike) -> float:
    """Mean squared error."""
    a, b = _pair(mean, y)
    return float(np.mean((a - b) ** 2))


def rmse(mean: ArrayLike, y: ArrayLike) -> float:
    """Root of the mean squared error."""
    return math.sqrt(mse(mean, y))


def gaussian_nll(mean: ArrayLike, std: ArrayLike, y: ArrayLike) -> float:
    """Mean negative log-density of ``y`` under independent normals, in nats an observation.

    Args:
        mean: Predictive means, any shape.
        std: Predictive standard deviations of observations; a scalar stands for all.
        y: Observed values, shaped as ``mean``.
    """
    a, b = _pair(mean, y)
    s = np.broadcast_to(np.asarray(std, dtype=np.float64), a.shape)
    return float(np.mean(0.5 * np.log(2.0 * np.pi * s**2) + 0.5 * ((b - a) / s) ** 2))


def coverage(mean: ArrayLike, std: ArrayLike, y: ArrayLike, level: float = 0.95) -> float:
    """Share of ``y`` inside the central normal interval of probability ``level``."""
    a, b = _pair(mean, y)
    s = np.broadcast_to(np.asarray(std, dtype=np.float64), a.shape)
    return float(np.mean(np.abs(b - a) <= norm.ppf(0.5 + level / 2.0) * s))


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Share of examples whose most probable class is the label; any scores (n, classes) serve."""
    return metrics.accuracy(probabilities, labels)


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-probability of the labels; a zero probability counts as the smallest positive double."""
    return metrics.negative_log_likelihood(probabilities, labels)


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of the top class, over bins of equal mass.

    Equal mass, not equal width: a confident classifier would otherwise put nearly all examples in one bin.
    """
    return metrics.expected_calibration_error(probabilities, labels, bins, "mass")


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> Summary:
    """Mean and standard error over repetitions; NaN, not zero, where one or none are too few for them."""
    v = np.asarray(values, dtype=np.float64)
    error = float(v.std(ddof=1) / math.sqrt(v.size)) if v.size > 1 else math.nan
    return Summary(float(v.mean()) if v.size else math.nan, error, int(v.size))


class PairedDifference(NamedTuple):
    """First minus second over the same seeds: mean, its standard error and a two-sided t interval."""

    mean: float
    standard_error: float
    lower: float
    upper: float
    repetitions: int

    @property
    def worse(self) -> bool:
        """Whether the first is larger (for an error: worse) beyond what the seeds explain."""
        return self.lower > 0.0

    @property
    def better(self) -> bool:
        """Whether the first is smaller beyond what the seeds explain."""
        return self.upper < 0.0


def paired_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> PairedDifference:
    """Difference of two methods over shared seeds, with the Student interval of probability ``level``."""
    a, b = _pair(first, second)
    mean, error, repetitions = mean_and_standard_error((a - b).ravel())
    half = float(t.ppf(0.5 + level / 2.0, repetitions - 1)) * error if repetitions > 1 else math.inf
    return PairedDifference(mean, error, mean - half, mean + half, repetitions)
