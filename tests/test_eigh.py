"""Eigh: the exact posterior where the covariance is singular, and a warning where there is none."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch

import jacana
from jacana import Eigh, FunctionSpace
from tests import oracles, zoo
from tests.problems import problem

DOUBLE = torch.float64
METHOD = FunctionSpace(Eigh())
NAMES = ["p < nc, c = 2", "p > nc, c = 2", "one noise an example", "n = 1, c = 3", "a prior each layer", "mean zero"]


def repeated(name="p > nc, c = 2", noise=0.0):
    """A problem whose first two examples come three times and twice, and what the distinct ones say by the oracle."""
    it = problem(name)
    index = [0, 1, 0, 2, 1, 3, 0, 4]
    known = {**it.known, "sigma": noise}
    want = oracles.condition_on_functions(**known, J_new=it.J_new, mean_new=it.m_new)
    return it, it.x[index], it.y[index], want


@pytest.mark.parametrize("name", NAMES)
def test_a_covariance_that_is_not_singular(name, dtype):
    it = problem(name, dtype)
    post = it.condition_on_data(METHOD)
    prediction, scale = post.predict(it.x_new), np.abs(it.K_new).max()
    it.close(prediction.mean, it.shaped(it.posterior.mean), "mean", scale=it.size)
    it.close(prediction.covariance, it.posterior.covariance, "covariance", scale=scale)
    it.close(prediction.variance, it.shaped(it.posterior.variance), "variance", scale=scale)
    it.close(post.weights, it.weights.mean[:, 0], "weights")
    it.close(post.log_evidence, it.log_evidence, "evidence", scale=max(abs(it.log_evidence), it.n * it.c))
    want = oracles.leave_one_out_by_refitting(**it.known)
    it.close(post.leave_one_out().mean, it.shaped(want.mean), "left out", scale=it.size)


def test_repeated_examples_without_noise_are_counted_once():
    it, x, y, want = repeated()
    with pytest.raises(jacana.errors.NotPositiveDefinite, match="Eigh"):
        it.gp.condition(x, y, 0.0, method=FunctionSpace())
    post = it.gp.condition(x, y, 0.0, method=METHOD)
    prediction, condition = post.predict(it.x_new), np.linalg.cond(it.K)
    assert condition < 1e6
    scale = np.abs(it.K_new).max()
    oracles.assert_close(prediction.mean, want.mean, DOUBLE, condition=condition, scale=it.size)
    oracles.assert_close(prediction.covariance, want.covariance, DOUBLE, condition=condition, scale=scale)
    oracles.assert_close(prediction.variance, want.variance, DOUBLE, condition=condition, scale=scale)
    oracles.assert_close(post.predict(it.x).mean, it.Y, DOUBLE, condition=condition, scale=it.size)
    index = [0, 1, 0, 2, 1, 3, 0, 4]
    rows = [2 * i + k for i in index for k in range(2)]
    K = it.K[np.ix_(rows, rows)]
    factor = Eigh().factor(torch.from_numpy(K))
    assert (factor.dropped, factor.rank) == (6, 10)
    residual = (it.Y - it.m)[index].reshape(-1)
    evidence = scipy.stats.multivariate_normal(np.zeros(16), K, allow_singular=True).logpdf(residual)
    oracles.assert_close(post.log_evidence, evidence, DOUBLE, condition=condition, scale=100.0)


def test_more_observations_than_parameters_without_noise():
    """Least squares in the weights, and what no longer can move has no variance."""
    it = problem("p < nc, c = 2")
    w = np.linalg.lstsq(it.J * it.s, (it.Y - it.m).reshape(-1), rcond=1e-12)[0] * it.s
    with pytest.warns(jacana.errors.NotConverged, match="contradict"):
        post = it.gp.condition(it.x, it.y, 0.0, method=METHOD)
    condition = np.linalg.cond(it.J) ** 2
    oracles.assert_close(post.weights, w, DOUBLE, condition=condition, scale=np.abs(w).max())
    prediction = post.predict(it.x_new)
    assert float(prediction.variance.abs().max()) <= 64 * oracles.eps(DOUBLE) * condition * np.abs(it.K_new).max()
    assert (prediction.covariance.diagonal() >= 0).all()
    agreeing = torch.from_numpy(it.m + (it.J @ w).reshape(it.m.shape))
    silent = it.gp.condition(it.x, agreeing, 0.0, method=METHOD)  # warnings are errors
    oracles.assert_close(silent.weights, w, DOUBLE, condition=condition, scale=np.abs(w).max())


@pytest.mark.parametrize("gap", [1.0, 1e-5])
def test_contradictions_are_not_passed_over(gap):
    it, x, y, _ = repeated()
    y = y.clone()
    y[2] += gap
    with pytest.warns(jacana.errors.NotConverged, match="noise_std"):
        post = it.gp.condition(x, y, 0.0, method=METHOD)
    middle = it.Y.copy()
    middle[0] += gap / 3  # one of three says so
    fitted = post.predict(it.x).mean
    oracles.assert_close(fitted, middle, DOUBLE, condition=np.linalg.cond(it.K), scale=it.size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        it.gp.condition(x, y, 1e-3, method=METHOD)  # noise explains them


def test_no_variance_is_below_the_exact_one():
    """A smooth kernel most of whose eigenvalues are below rounding: what is dropped is left unexplained."""
    case = zoo.Case("smooth", lambda: zoo.mlp(1, 30, 1), zoo.vectors(1))
    net, x, new = case.net(DOUBLE), torch.linspace(-1, 1, 30, dtype=DOUBLE)[:, None], case.x(12, DOUBLE)
    y = x.sin()
    J, J_new, m, m_new = (f(net, z) for f in (oracles.jacobian, oracles.outputs) for z in (x, new))
    exact = oracles.condition_exactly(J, np.ones(J.shape[1]), m, y.numpy(), 1e-9, J_new, m_new)
    for rtol in (None, 1e-10, 1e-5):
        solver = Eigh(rtol)
        assert solver.factor(jacana.gram(net, x)).dropped > 5
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jacana.errors.NotConverged)
            post = jacana.TangentGP(net).condition(x, y, 1e-9, method=FunctionSpace(solver))
        variance = post.predict(new).variance
        assert (variance.numpy() >= exact.variance * (1 - 1e-6) - 1e-14 * np.abs(J_new).max() ** 2).all()
    assert (variance.numpy() > 2 * exact.variance).any()


def test_more_data_are_the_same_as_all_at_once():
    it, x, y, want = repeated()
    post = it.gp.condition(x[:3], y[:3], 0.0, method=METHOD).condition(x[3:], y[3:])
    condition = np.linalg.cond(it.K)
    prediction = post.predict(it.x_new)
    oracles.assert_close(prediction.mean, want.mean, DOUBLE, condition=condition, scale=it.size)
    scale = np.abs(it.K_new).max()
    oracles.assert_close(prediction.covariance, want.covariance, DOUBLE, condition=condition, scale=scale)


def test_samples_have_the_posterior_covariance():
    it, x, y, _ = repeated()
    prediction = it.gp.condition(x[:4], y[:4], 0.0, method=METHOD).predict(it.x_new[:2])
    drawn = prediction.sample(4000, torch.Generator().manual_seed(0)).flatten(1)
    oracles.assert_gaussian_samples(drawn, prediction.mean, prediction.covariance)


def test_leave_one_out_is_refused_where_it_has_no_closed_form():
    it, x, y, _ = repeated()
    with pytest.raises(jacana.errors.InvalidOption, match="leave_one_out: the covariance has rank 10 of 16"):
        it.gp.condition(x, y, 0.0, method=METHOD).leave_one_out()


def test_the_factor_is_a_pseudo_inverse():
    generator = np.random.default_rng(0)
    root = generator.normal(size=(7, 4))
    A, B = torch.from_numpy(root @ root.T), torch.from_numpy(root @ generator.normal(size=(4, 3)))
    factor, inverse = Eigh().factor(A), np.linalg.pinv(root @ root.T, rcond=1e-12)
    oracles.assert_close(factor.solve(B), inverse @ B.numpy(), DOUBLE, condition=1e4)
    oracles.assert_close(factor.complete(factor.half_solve(B)), inverse @ B.numpy(), DOUBLE, condition=1e4)
    oracles.assert_close(factor.inverse(), inverse, DOUBLE, condition=1e4)
    determinant = math.log(np.linalg.det(root.T @ root))
    oracles.assert_close(factor.log_determinant, determinant, DOUBLE, condition=1e4)
    assert Eigh(0.0).factor(A).rank >= Eigh().factor(A).rank == 4 > Eigh(0.5).factor(A).rank


def test_a_covariance_of_zero():
    factor = Eigh().factor(torch.zeros(3, 3, dtype=DOUBLE))
    assert (factor.rank, factor.dropped, factor.log_determinant) == (0, 3, 0.0)
    assert torch.equal(factor.solve(torch.zeros(3, 1, dtype=DOUBLE)), torch.zeros(3, 1, dtype=DOUBLE))
    with pytest.warns(jacana.errors.NotConverged, match=r"1\.0e\+00"):
        assert torch.equal(factor.solve(torch.ones(3, 1, dtype=DOUBLE)), torch.zeros(3, 1, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("matrix", "words"), [([[1.0, 2.0], [2.0, 1.0]], "eigenvalue of -1"), ([[1.0, math.nan], [math.nan, 1.0]], "NaN")]
)
def test_what_is_no_covariance_is_refused(matrix, words):
    with pytest.raises(jacana.errors.NotPositiveDefinite, match=words):
        Eigh().factor(torch.tensor(matrix, dtype=DOUBLE))


@pytest.mark.parametrize("rtol", [-1e-9, 1.0, math.nan, True, "small"])
def test_options_are_checked(rtol, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match="rtol"):
        Eigh(rtol)
