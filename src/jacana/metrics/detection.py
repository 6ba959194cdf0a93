"""Detection: telling examples of another distribution by their uncertainty."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from jacana.errors import InvalidData
from jacana.metrics.classified import Values, as_numbers

__all__ = ["out_of_distribution_auroc"]


def out_of_distribution_auroc(scores_in: Values, scores_out: Values) -> float:
    """The probability that an out-of-distribution example has the larger uncertainty than one of the distribution.

        P(s_out > s_in) + ½ P(s_out = s_in)

    over all pairs: the area under the receiver operating characteristic. ½ is chance, 1 tells all apart, and below ½
    the network is surer of what it has never seen. It does not change when an increasing function is applied to all
    scores.

    Args:
        scores_in: n uncertainties of examples like those trained on: entropies, variances, negative confidences.
        scores_out: m of examples unlike them; in the same units, the larger the less sure. They may be infinite.

    Raises:
        InvalidData: no scores, NaN, more than one a row.

    References:
        Mann and Whitney 1947, On a test of whether one of two random variables is stochastically larger than the other.
        Hendrycks and Gimpel 2017 (arXiv 1610.02136) for the use.

    Example:
        >>> from jacana import metrics
        >>> metrics.out_of_distribution_auroc([0.1, 0.2, 0.5], [0.4, 0.5])
        0.75
    """
    inside, outside = _scores(scores_in, "scores_in"), _scores(scores_out, "scores_out")
    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([outside, inside]))[:m]  # ties share the mean of their ranks: they count half
    return float((ranks.sum() - m * (m + 1) / 2) / (n * m))


def _scores(values: Values, name: str) -> Float64[np.ndarray, " n"]:
    scores = as_numbers(values, name)[0]
    if scores.ndim != 1 or len(scores) == 0:
        raise InvalidData(
            f"{name}: got shape {scores.shape}; expected (n,), an uncertainty for each example. Of probabilities take "
            "e.g. 1 - probabilities.max(1)."
        )
    return scores
