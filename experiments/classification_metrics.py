"""The figures of merit of the classification experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from jacana import metrics

__all__ = ["Says", "entropy", "figures"]


class Says(NamedTuple):
    """What a method says of some images: probabilities (m, c), and how little it knows of each, (m,)."""

    probabilities: np.ndarray
    uncertainty: np.ndarray


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
    calibration = metrics.calibration_excess(p, labels, n_draws=simulations)
    found = {
        "accuracy": metrics.accuracy(p, labels),
        "nll": metrics.negative_log_likelihood(p, labels),
        "ece": calibration.ece,
        "ece_excess": calibration.excess,
        "brier": metrics.brier_score(p, labels),
    }
    for name, says in outside.items():
        found[f"auroc_{name}"] = metrics.out_of_distribution_auroc(test.uncertainty, says.uncertainty)
        found[f"auroc_{name}_by_entropy"] = metrics.out_of_distribution_auroc(entropy(p), entropy(says.probabilities))
    return found
