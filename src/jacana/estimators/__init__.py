"""Estimators: scikit-learn's conventions; validation and defaults, no mathematics."""

from jacana.estimators.classifier import NTKClassifier as NTKClassifier
from jacana.estimators.regressor import NTKRegressor as NTKRegressor
