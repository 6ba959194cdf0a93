"""Metrics against figures worked out by hand or by another library."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from experiments import metrics


def test_squared_errors_by_hand():
    assert metrics.mse([1.0, 2.0, 3.0], [1.0, 4.0, 2.0]) == pytest.approx(5.0 / 3.0)
    assert metrics.rmse([1.0, 2.0, 3.0], [1.0, 4.0, 2.0]) == pytest.approx(math.sqrt(5.0 / 3.0))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.mse(np.zeros(3), np.zeros((3, 1)))


def test_gaussian_nll_is_the_joint_density_of_independent_normals():
    rng = np.random.default_rng(0)
    mean, y, std = rng.normal(size=5), rng.normal(size=5), rng.uniform(0.5, 2.0, size=5)
    joint = -multivariate_normal(mean, np.diag(std**2)).logpdf(y) / 5
    assert metrics.gaussian_nll(mean, std, y) == pytest.approx(joint)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_coverage_of_what_the_prediction_is_true_of(level):
    # 20,000 draws: five standard errors at level .5 are .018; a false alarm in 1.7 million runs.
    y = norm.rvs(loc=2.0, scale=3.0, size=20_000, random_state=0)
    assert metrics.coverage(np.full(20_000, 2.0), 3.0, y, level) == pytest.approx(level, abs=0.018)


def test_classification_by_hand():
    probabilities, labels = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]]), np.array([0, 0, 0])
    assert metrics.accuracy(probabilities, labels) == pytest.approx(2 / 3)
    assert metrics.nll(probabilities, labels) == pytest.approx(-np.log([0.7, 0.4, 0.9]).mean())
    # Two bins of two and one: confidences .6, .7 (one right of two) and .9 (right).
    assert metrics.ece(probabilities, labels, bins=2) == pytest.approx((2 * abs(0.5 - 0.65) + abs(1.0 - 0.9)) / 3)


def test_a_calibrated_classifier_has_a_small_calibration_error_and_a_boastful_one_has_not():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1.0, 20_000)
    labels = (rng.uniform(size=20_000) > sure).astype(int)
    honest = np.stack([sure, 1.0 - sure], axis=1)
    boastful = np.stack([np.full(20_000, 0.99), np.full(20_000, 0.01)], axis=1)
    assert metrics.ece(honest, labels) < 0.02
    assert metrics.ece(boastful, labels) == pytest.approx(0.24, abs=0.02)


def test_zero_probability_is_finite():
    assert metrics.nll([[1.0, 0.0]], [1]) == pytest.approx(-math.log(np.finfo(float).tiny))


def test_summary_and_paired_difference():
    assert metrics.mean_and_standard_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert math.isnan(metrics.mean_and_standard_error([1.0]).standard_error)
    # Large differences between seeds cancel in pairs.
    seeds = np.array([10.0, 20.0, 30.0])
    found = metrics.paired_difference([11.0, 21.1, 30.9], seeds)
    assert found.mean == pytest.approx(1.0)
    assert found.worse
    assert not found.better
    assert not metrics.paired_difference([1.0, -1.0, 0.2], [0.0, 0.0, 0.0]).worse
    alone = metrics.paired_difference([2.0], [1.0])
    assert not alone.worse
    assert not alone.better
