"""The last layer refitted: logistic regression on a network's last features, its penalty by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

__all__ = ["fit_logistic"]


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, *, inverse_penalties: Sequence[float], folds: int, seed: int
) -> tuple[Any, float]:
    """Multinomial logistic regression on standardised features.

    Cross-validation goes by the log-probability of held-out labels: its cost is nothing, and it is the figure that an
    unwise penalty spoils first.

    Args:
        features: Inputs of the last layer, (n, d).
        labels: Classes, (n,), each at least ``folds`` times.
        inverse_penalties: Values of C to choose from.
        folds: Stratified folds.
        seed: Of the folds.

    Returns:
        The model, with ``predict_proba``, fitted on everything; and the C that was chosen.
    """
    pipeline = Pipeline([("scale", StandardScaler()), ("model", LogisticRegression(max_iter=10_000))])
    search = GridSearchCV(
        pipeline,
        {"model__C": list(inverse_penalties)},
        scoring="neg_log_loss",
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        error_score="raise",
    )
    search.fit(features, labels)
    return search.best_estimator_, float(search.best_params_["model__C"])
