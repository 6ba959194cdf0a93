"""Scores: means over examples of what their probabilities say of their labels."""

from __future__ import annotations

import numpy as np

from jacana.metrics.classified import Values, classified

__all__ = ["accuracy", "brier_score", "negative_log_likelihood"]


def accuracy(probabilities: Values, labels: Values, *, classes: Values | None = None) -> float:
    """The share of examples whose most probable class is the label.

    Args:
        probabilities: (n, k); logits or other scores serve as well, of which only the largest in a row counts.
        labels: (n,), columns by number.
        classes: the label of each column, if not 0, …, k − 1.

    Raises:
        InvalidData: shapes, NaN, labels that are no class.
        InvalidOption: ``classes`` that do not name each column once.

    Example:
        >>> from jacana import metrics
        >>> metrics.accuracy([[0.8, 0.2], [0.3, 0.7]], [0, 0])
        0.5
    """
    return float(classified(probabilities, labels, classes, any_scores=True).correct.mean())


def negative_log_likelihood(probabilities: Values, labels: Values, *, classes: Values | None = None) -> float:
    """The mean of −log p(label), in nats an example: the proper score that the evidence is made of.

    A probability of zero counts as the smallest positive (normal) double, 2.2e-308, which costs 708: one such example
    among thousands is seen, and does not hide all others as an infinite mean would.

    Args:
        probabilities: (n, k), of sum one.
        labels: (n,), columns by number.
        classes: the label of each column, if not 0, …, k − 1.

    Raises:
        InvalidData: shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: ``classes`` that do not name each column once.

    Example:
        >>> from jacana import metrics
        >>> metrics.negative_log_likelihood([[0.5, 0.5], [1.0, 0.0]], [0, 0])
        0.3466
    """
    of_labels = classified(probabilities, labels, classes).of_labels
    return float(-np.log(np.maximum(of_labels, np.finfo(np.float64).tiny)).mean())


def brier_score(probabilities: Values, labels: Values, *, classes: Values | None = None) -> float:
    """The mean squared distance of the probabilities from the one-hot labels, from 0 to 2.

        (1/n) Σᵢ Σ_k (p_ik − 1[yᵢ = k])²

    It is a sum over all classes, as Brier had it: of two classes, twice what is often given for the positive one alone.
    Proper as the log-likelihood is, but bounded, so that no single example decides.

    Args:
        probabilities: (n, k), of sum one.
        labels: (n,), columns by number.
        classes: the label of each column, if not 0, …, k − 1.

    Raises:
        InvalidData: shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: ``classes`` that do not name each column once.

    References:
        Brier 1950, Verification of forecasts expressed in terms of probability.

    Example:
        >>> from jacana import metrics
        >>> metrics.brier_score([[0.5, 0.5], [1.0, 0.0]], [0, 0])
        0.25
    """
    given = classified(probabilities, labels, classes)
    apart = given.probabilities.copy()
    apart[np.arange(len(given)), given.labels] -= 1.0
    return float((apart**2).sum(axis=1).mean())
