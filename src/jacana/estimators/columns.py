"""Columns: what scikit-learn's estimators remember of a two-dimensional X."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from jacana.errors import InvalidData

__all__ = ["check_columns", "remember_columns"]


def remember_columns(estimator: BaseEstimator, X: Any) -> None:
    """Note the number of columns and their names, where there are any."""
    if _has_columns(X):
        validate_data(estimator, X, reset=True, skip_check_array=True)
        return
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(estimator, name):
            delattr(estimator, name)


def check_columns(estimator: BaseEstimator, X: Any) -> None:
    """Refuse other columns than at fit, or the same in another order.

    Raises:
        InvalidData: says which.
    """
    if not _has_columns(X) or not hasattr(estimator, "n_features_in_"):
        return
    try:
        validate_data(estimator, X, reset=False, skip_check_array=True)
    except ValueError as error:
        raise InvalidData(f"X: got other columns than at fit; pass the same. {error}") from error


def _has_columns(X: Any) -> bool:
    return len(getattr(X, "shape", ())) == 2
