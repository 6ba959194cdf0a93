"""Estimators: the scikit-learn face."""

from jacana.estimators.regressor import NTKRegressor as NTKRegressor
