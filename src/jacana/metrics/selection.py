"""Selection: how often a classifier is wrong where it may keep silent on what it is least sure of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from jacana.errors import InvalidData
from jacana.metrics.classified import Values, as_numbers, classified
from jacana.metrics.ties import cumulative

__all__ = ["RiskCoverage", "risk_coverage"]


class RiskCoverage(NamedTuple):
    """What :func:`risk_coverage` finds.

    Attributes:
        coverage: (n,), the share of examples that are answered, 1/n, 2/n, …, 1.
        risk: (n,), the share of these that are wrong.
        area: AURC, the mean of ``risk``: 0 where nothing is wrong.

    Example:
        >>> from jacana import metrics
        >>> metrics.risk_coverage([[0.9, 0.1], [0.4, 0.6]], [0, 0]).area
        0.25
    """

    coverage: Float64[np.ndarray, " n"]
    risk: Float64[np.ndarray, " n"]
    area: float


def risk_coverage(
    probabilities: Values, labels: Values, *, confidence: Values | None = None, classes: Values | None = None
) -> RiskCoverage:
    """The error rate among the i examples that the classifier is surest of, for i = 1, …, n, and the mean of these.

        risk_i = (errors among the i of largest confidence) / i,     AURC = (1/n) Σᵢ risk_i

    Examples of equal confidence have no order: each risk is its mean over all orders of them, so that the curve does
    not depend on how the data are arranged. A confidence that says nothing gives the error rate at every coverage. The
    smallest area for an error rate e is about e + (1 − e) log(1 − e), with all errors last.

    Args:
        probabilities: (n, k), of sum one; the most probable class is the answer.
        labels: (n,), columns by number.
        confidence: (n,), what to be sure means, the larger the surer; by default the largest probability. Negative
            entropies and negative variances serve.
        classes: the label of each column, if not 0, …, k − 1.

    Raises:
        InvalidData: shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: ``classes`` that do not name each column once.

    References:
        Geifman and El-Yaniv 2017 (arXiv 1705.08500). Geifman, Uziel, El-Yaniv 2019 (arXiv 1805.08206) for the area.

    Example:
        >>> from jacana import metrics
        >>> found = metrics.risk_coverage([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], [0, 0, 1])
        >>> found.risk, found.area
        (array([0.        , 0.        , 0.33333333]), 0.11)
    """
    given = classified(probabilities, labels, classes)
    sure = given.confidence if confidence is None else as_numbers(confidence, "confidence")[0]
    if sure.shape != (len(given),):
        raise InvalidData(f"confidence: got shape {sure.shape}; expected ({len(given)},), one for each example.")
    order = np.argsort(-sure, kind="stable")
    answered = np.arange(1, len(given) + 1)
    risk = cumulative(-sure[order], (~given.correct[order]).astype(np.float64), answered) / answered
    return RiskCoverage(answered / len(given), risk, float(risk.mean()))
