"""The figures of merit of the classification experiment, in one place: where others take over is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr
from scipy.stats import rankdata

from experiments.metrics import accuracy
from experiments.metrics import ece as expected_calibration_error
from experiments.metrics import nll as negative_log_likelihood

__all__ = [
    "CalibrationExcess",
    "Says",
    "accuracy",
    "brier_score",
    "calibration_excess",
    "entropy",
    "expected_calibration_error",
    "figures",
    "negative_log_likelihood",
    "out_of_distribution_auroc",
]


class Says(NamedTuple):
    """What a method says of some images: probabilities (m, c), and how little it knows of each, (m,)."""

    probabilities: np.ndarray
    uncertainty: np.ndarray


class CalibrationExcess(NamedTuple):
    """A calibration error, what it would be on average were the probabilities true, and the difference."""

    observed: float
    expected: float
    excess: float


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of the probabilities from the one-hot labels, from 0 to 2 (Brier 1950)."""
    p, k = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    return float(np.mean(((p - np.eye(p.shape[1])[k]) ** 2).sum(axis=1)))


def calibration_excess(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, *, simulations: int = 1000, seed: int = 0
) -> CalibrationExcess:
    """The expected calibration error beyond that of a perfectly calibrated model with the same probabilities.

    With finitely many examples no model has an error of zero. A calibrated one is right on each example with the
    probability of its top class; so many such runs are drawn, and the mean of their errors is taken off.

    Args:
        probabilities: Of the classes, (n, c).
        labels: Classes, (n,).
        bins: Of equal mass.
        simulations: Runs.
        seed: Of the draws.
    """
    observed = expected_calibration_error(probabilities, labels, bins)
    confidence = np.sort(np.asarray(probabilities, dtype=np.float64).max(axis=1))
    groups = [group for group in np.array_split(np.arange(len(confidence)), bins) if len(group)]
    right = np.random.default_rng(seed).random((simulations, len(confidence))) < confidence
    gaps = right - confidence
    errors = sum(np.abs(gaps[:, group].sum(axis=1)) for group in groups) / len(confidence)
    expected = float(np.mean(errors))
    return CalibrationExcess(observed, expected, observed - expected)


def out_of_distribution_auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """The probability that an outside image has a greater score than an inside one; a tie counts half."""
    a, b = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    ranks = rankdata(np.concatenate([a, b]))[len(a) :]
    return float((ranks.mean() - (len(b) + 1) / 2.0) / len(a))


def entropy(probabilities: ArrayLike) -> np.ndarray:
    """The entropy (m,) of each distribution, in nats."""
    found: np.ndarray = entr(np.asarray(probabilities, dtype=np.float64)).sum(axis=1)
    return found


def figures(test: Says, labels: ArrayLike, outside: Mapping[str, Says], *, simulations: int) -> dict[str, float]:
    """All figures of one method with some labels and a seed.

    Args:
        test: What the method says of the test images.
        labels: The test images' classes, (n,).
        outside: What it says of images of no class, by the name of the set.
        simulations: Behind the excess of the calibration error.

    Raises:
        ValueError: Something that it says is no distribution, or no number.
    """
    for name, says in {"test": test, **outside}.items():
        p, u = says
        if p.ndim != 2 or u.shape != p.shape[:1] or not np.isfinite(u).all():
            raise ValueError(f"{name}: got {p.shape} and scores {u.shape}, expected (m, c) and finite (m,)")
        if not (p >= 0.0).all() or not np.allclose(p.sum(axis=1), 1.0, atol=1e-5):
            raise ValueError(f"{name}: probabilities are negative, not a number or do not sum to one")
    p = test.probabilities
    calibration = calibration_excess(p, labels, simulations=simulations)
    found = {
        "accuracy": accuracy(p, labels),
        "nll": negative_log_likelihood(p, labels),
        "ece": calibration.observed,
        "ece_excess": calibration.excess,
        "brier": brier_score(p, labels),
    }
    for name, says in outside.items():
        found[f"auroc_{name}"] = out_of_distribution_auroc(test.uncertainty, says.uncertainty)
        found[f"auroc_{name}_by_entropy"] = out_of_distribution_auroc(entropy(p), entropy(says.probabilities))
    return found
