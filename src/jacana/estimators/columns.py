"""Columns: what scikit-learn's estimators remember of a two-dimensional X."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator

from jacana.errors import InvalidData

__all__ = ["check_columns", "remember_columns"]


def remember_columns(estimator: BaseEstimator, X: Any) -> None:
    """Note the number of columns, where there are columns."""
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if len(shape) == 2:
        estimator.n_features_in_ = int(shape[1])
    elif hasattr(estimator, "n_features_in_"):
        del estimator.n_features_in_


def check_columns(estimator: BaseEstimator, X: Any) -> None:
    """Refuse another number of columns than at fit.

    Raises:
        InvalidData: says how many.
    """
    shape: tuple[int, ...] = getattr(X, "shape", ())
    expected = getattr(estimator, "n_features_in_", None)
    if expected is not None and len(shape) == 2 and shape[1] != expected:
        raise InvalidData(
            f"X: got {shape[1]} features; {type(estimator).__name__} is expecting {expected}, as at fit: pass the same "
            "columns."
        )
