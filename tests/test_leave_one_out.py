"""Leave-one-example-out in closed form = refitting n times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jacana import FunctionSpace, WeightSpace
from tests import oracles, problems
from tests.problems import problem

METHODS = {"function space": FunctionSpace(), "weight space": WeightSpace()}
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.mark.parametrize("name", problems.BY_NAME)
@BOTH
def test_leaving_one_out_is_refitting_n_times(name, method, dtype):
    """Blocks of c outputs leave together: the row formula is wrong for c > 1."""
    it = problem(name, dtype)
    left = it.condition_on_data(method).leave_one_out()
    want = oracles.leave_one_out_by_refitting(**it.known)
    it.close(left.mean, it.shaped(want.mean), "mean", scale=it.size)
    it.close(left.residual, it.shaped(it.Y - want.mean), "residual", scale=it.size)
    it.close(left.covariance, want.covariance, "covariance", scale=np.abs(want.covariance).max())
    it.close(left.log_probability, want.log_probability, "log", scale=max(np.abs(want.log_probability).max(), 1.0))
    assert left.mean.dtype == left.covariance.dtype == left.log_probability.dtype == torch.float64


def test_the_row_formula_would_be_caught():
    it = problem("p > nc, c = 2")
    inverse = np.linalg.inv(it.K + it.noise)
    rows = ((inverse @ (it.Y - it.m).reshape(-1)) / np.diag(inverse)).reshape(it.n, it.c)
    want = it.Y - oracles.leave_one_out_by_refitting(**it.known).mean
    assert np.abs(rows - want).max() > 0.05


@BOTH
def test_it_is_what_the_package_itself_predicts_after_refitting(method):
    it = problem("p > nc, c = 2")
    left = it.condition_on_data(method).leave_one_out()
    for i in range(it.n):
        others = [j for j in range(it.n) if j != i]
        prediction = it.gp.condition(it.x[others], it.y[others], 0.3, method=method).predict(it.x[[i]], observed=True)
        it.close(left.mean[[i]], prediction.mean, "mean", scale=it.size)
        it.close(left.covariance[i], prediction.covariance, "covariance", scale=1.0)


@BOTH
def test_of_a_posterior_in_two_steps(method):
    it = problem("p < nc, c = 2")
    post = it.gp.condition(it.x[:5], it.y[:5], 0.3, method=method).condition(it.x[5:], it.y[5:])
    want = oracles.leave_one_out_by_refitting(**it.known)
    it.close(post.leave_one_out().mean, want.mean, "mean", scale=it.size)
    it.close(post.leave_one_out().log_probability, want.log_probability, "log probability")


def test_of_one_example_it_is_the_prior():
    it = problem("n = 1, c = 3")
    left = it.condition_on_data().leave_one_out()
    prior = it.gp.predict(it.x)
    it.close(left.mean, prior.mean, "mean", scale=it.size)
    it.close(left.covariance[0], prior.covariance + 0.09 * torch.eye(3, dtype=torch.float64), "covariance")
    it.close(left.log_probability[0], it.log_evidence, "log probability", scale=10.0)
