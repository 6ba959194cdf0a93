"""Metrics: figures of merit of class probabilities, each as one call, and the pictures that go with them.

All take NumPy arrays or tensors on any device: probabilities (n, k), a row for each example, and labels (n,), the
numbers 0, …, k − 1 of the columns, or with ``classes=`` whatever the columns are called. They give floats or NumPy
arrays, computed in float64. The predicted class is the most probable one, the first of equally probable ones, and its
probability is the confidence.

Example:
    >>> from jacana import metrics
    >>> probabilities = [[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
    >>> metrics.accuracy(probabilities, [0, 1, 1]), metrics.negative_log_likelihood(probabilities, [0, 1, 1])
    (0.667, 0.499)
    >>> metrics.accuracy(probabilities, ["cat", "dog", "dog"], classes=["cat", "dog"])
    0.667
"""

from jacana.metrics.calibration import CalibrationExcess as CalibrationExcess
from jacana.metrics.calibration import calibration_excess as calibration_excess
from jacana.metrics.calibration import expected_calibration_error as expected_calibration_error
from jacana.metrics.detection import out_of_distribution_auroc as out_of_distribution_auroc
from jacana.metrics.pictures import reliability_diagram as reliability_diagram
from jacana.metrics.pictures import risk_coverage_plot as risk_coverage_plot
from jacana.metrics.scores import accuracy as accuracy
from jacana.metrics.scores import brier_score as brier_score
from jacana.metrics.scores import negative_log_likelihood as negative_log_likelihood
from jacana.metrics.selection import RiskCoverage as RiskCoverage
from jacana.metrics.selection import risk_coverage as risk_coverage

__all__ = [
    "CalibrationExcess",
    "RiskCoverage",
    "accuracy",
    "brier_score",
    "calibration_excess",
    "expected_calibration_error",
    "negative_log_likelihood",
    "out_of_distribution_auroc",
    "reliability_diagram",
    "risk_coverage",
    "risk_coverage_plot",
]
