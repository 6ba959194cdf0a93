"""Calibration: whether what is said to be right with probability p is right that often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.utils import check_random_state

from jacana.errors import InvalidOption
from jacana.metrics.classified import Classified, Values, as_count, classified
from jacana.metrics.ties import cumulative

__all__ = ["Bins", "CalibrationExcess", "calibration_excess", "expected_calibration_error"]

_DRAWN_AT_ONCE = 2**21
"""Simulated examples in memory together, of 8 bytes and less than a handful of times."""
_ROUNDING = 1e-12
"""Errors that differ by no more are equal: with few examples the same counts come up again and again."""


class CalibrationExcess(NamedTuple):
    """What :func:`calibration_excess` finds.

    Attributes:
        ece: the expected calibration error of the data.
        expected: its mean if every probability were true.
        excess: ``ece`` − ``expected``.
        p_value: the share of simulated errors that are as large as ``ece``; small where the probabilities are not true.

    Example:
        >>> from jacana import metrics
        >>> metrics.calibration_excess([[1.0, 0.0], [0.0, 1.0]], [0, 1])
        CalibrationExcess(ece=0.0, expected=0.0, excess=0.0, p_value=1.0)
    """

    ece: float
    expected: float
    excess: float
    p_value: float


def expected_calibration_error(
    probabilities: Values,
    labels: Values,
    n_bins: int = 15,
    binning: str = "mass",
    *,
    classes: Values | None = None,
) -> float:
    """How far accuracy is from confidence, bin by bin, weighted by the examples in each.

        ECE = Σ_b (n_b / n) |accuracy_b − confidence_b|

    Of the most probable class. It is never negative and so biased upward: a calibrated model does not score zero on
    finite data, see :func:`calibration_excess`. It is no proper score: the base rates for every example are calibrated.

    Args:
        probabilities: (n, k), of sum one.
        labels: (n,), columns by number.
        n_bins: the number of bins; those without an example count for nothing.
        binning: ``"mass"`` sorts the examples by confidence and cuts them into groups that differ by at most one in
            size, so that a confident classifier does not have nearly all in one bin; examples of equal confidence that
            a cut parts are spread over its sides evenly, in whatever order they came (each counts as right to the
            share in which they all are). ``"width"`` cuts 0 to 1 into intervals (a, b] of equal width.
        classes: the label of each column, if not 0, …, k − 1.

    Raises:
        InvalidData: shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: other ``n_bins`` or ``binning``, ``classes`` that do not name each column once.

    References:
        Guo, Pleiss, Sun, Weinberger 2017 (arXiv 1706.04599), equation 3, bins of equal width. Nguyen and O'Connor 2015
        (arXiv 1508.05154), bins of equal mass.

    Example:
        >>> from jacana import metrics
        >>> probabilities = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]
        >>> metrics.expected_calibration_error(probabilities, [0, 0, 0], n_bins=2)
        0.133
    """
    given = classified(probabilities, labels, classes)
    return Bins.of(given, n_bins, binning).error(given.correct)


def calibration_excess(
    probabilities: Values,
    labels: Values,
    n_bins: int = 15,
    n_draws: int = 1000,
    random_state: Any = 0,
    *,
    binning: str = "mass",
    classes: Values | None = None,
) -> CalibrationExcess:
    """The expected calibration error beyond what a perfectly calibrated model with these probabilities would score.

    Labels are drawn from the probabilities ``n_draws`` times and the error of each draw is measured as that of the
    data. The excess is about zero for a calibrated model, whatever n and the bins, so that it can be compared between
    data sets; and the share of draws with as large an error is a p-value: a calibrated model has one below α in a share
    α of cases (up to 1/``n_draws``). Only whether the most probable class is right enters the error, so that this alone
    is drawn.

    Costs ``n_draws`` times n random numbers.

    Args:
        probabilities: (n, k), of sum one.
        labels: (n,), columns by number.
        n_bins: the number of bins.
        n_draws: simulated sets of labels.
        random_state: a seed, a NumPy RandomState, or None.
        binning: as for :func:`expected_calibration_error`.
        classes: the label of each column, if not 0, …, k − 1.

    Raises:
        InvalidData: shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: other ``n_bins``, ``n_draws`` or ``binning``, ``classes`` that do not name each column once.

    References:
        Bröcker and Smith 2007, Increasing the reliability of reliability diagrams: consistency resampling, here for the
        probabilities as they are, which are not resampled. Vaicenavicius et al. 2019 (arXiv 1902.06977) test by it.

    Example:
        >>> import numpy as np
        >>> from jacana import metrics
        >>> p = np.random.default_rng(0).dirichlet([0.5, 0.5, 0.5], size=500)
        >>> boasting = metrics.calibration_excess(p, np.random.default_rng(1).integers(0, 3, 500))
        >>> boasting.ece > 0.3, boasting.expected < 0.1, boasting.p_value
        (True, True, 0.0)
    """
    given = classified(probabilities, labels, classes)
    bins = Bins.of(given, n_bins, binning)
    drawn = bins.gaps(bins.simulated(given, as_count(n_draws, "n_draws"), random_state)).sum(axis=-1)
    ece, expected = bins.error(given.correct), float(drawn.mean())
    return CalibrationExcess(ece, expected, ece - expected, float((drawn >= ece - _ROUNDING).mean()))


@final
@dataclass(frozen=True)
class Bins:
    """Examples sorted by confidence, and where they are cut.

    Args:
        order: which example is the i-th least confident.
        confidence: of these, ascending.
        edges: bin b is from the ``edges[b]``-th to before the ``edges[b + 1]``-th.
    """

    order: Int64[np.ndarray, " n"]
    confidence: Float64[np.ndarray, " n"]
    edges: Int64[np.ndarray, " edges"]

    @classmethod
    def of(cls, given: Classified, n_bins: int, binning: str) -> Bins:
        """Bins of equal mass or width, without those that are empty.

        Raises:
            InvalidOption: another number or another kind of bins.
        """
        n_bins = as_count(n_bins, "n_bins")
        order = np.argsort(given.confidence, kind="stable")
        confidence, n = given.confidence[order], len(given)
        if binning == "mass":
            sizes = np.full(n_bins, n // n_bins) + (np.arange(n_bins) < n % n_bins)
            cuts = sizes.cumsum()
        elif binning == "width":
            cuts = confidence.searchsorted(np.arange(1, n_bins + 1) / n_bins, side="right")
            cuts[-1] = n  # rounding may lift a probability over one
        else:
            raise InvalidOption(f"binning: got {binning!r}; expected 'mass' or 'width'.")
        return cls(order, confidence, np.unique([0, *cuts]))

    @property
    def sizes(self) -> Int64[np.ndarray, " b"]:
        """How many examples each has."""
        return np.diff(self.edges)

    @property
    def confidences(self) -> Float64[np.ndarray, " b"]:
        """The mean confidence in each."""
        return self.sums(self.confidence) / self.sizes

    def sums(self, values: Float64[np.ndarray, "*s n"]) -> Float64[np.ndarray, "*s b"]:
        """Sums in each bin of values of the sorted examples."""
        return np.diff(cumulative(self.confidence, values, self.edges))

    def accuracies(self, correct: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " b"]:
        """The share of each that is right; ``correct`` is in the order of the data."""
        return self.sums(correct[self.order].astype(np.float64)) / self.sizes

    def gaps(self, accuracies: Float64[np.ndarray, "*s b"]) -> Float64[np.ndarray, "*s b"]:
        """What each adds to the expected calibration error."""
        return np.abs(accuracies - self.confidences) * self.sizes / len(self.order)

    def error(self, correct: Bool[np.ndarray, " n"]) -> float:
        """The expected calibration error."""
        return float(self.gaps(self.accuracies(correct)).sum())

    def simulated(self, given: Classified, n_draws: int, random_state: Any) -> Float64[np.ndarray, "s b"]:
        """Accuracies in each bin where labels are drawn from the probabilities, for each draw."""
        random = check_random_state(random_state)
        n = len(given)
        right = self.confidence / given.probabilities.sum(axis=1)[self.order]
        at_once = max(1, _DRAWN_AT_ONCE // n)
        parts = [
            self.sums((random.random_sample((min(at_once, n_draws - start), n)) < right).astype(np.float64))
            for start in range(0, n_draws, at_once)
        ]
        return np.concatenate(parts) / self.sizes
