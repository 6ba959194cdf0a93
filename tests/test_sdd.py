"""Stochastic dual descent: the exact answer to the stated tolerance, or NotConverged."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana.operators import Covariance
from tests import oracles
from tests.test_solvers import DOUBLE, NETWORKS, networks, random


@NETWORKS
@pytest.mark.parametrize("batch_size", [7, 60])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_exact_answer_to_the_tolerance(name, batch_size, dtype):
    net, x = networks(dtype)[name]
    lin = jacana.linearize(net, batch_size=batch_size)
    J = oracles.jacobian(net, x)
    n = len(J)
    variances = (J**2).sum(1).mean() * (0.5 + torch.rand(n, dtype=DOUBLE))
    A = J @ J.T + np.diag(variances.numpy())
    B = random(n, 3)
    B[:, 1] = 0.0
    covariance = Covariance(jacana.NTK(lin, x), variances)
    found = jacana.SDD(rtol=1e-4).solve(covariance, B)
    assert found.converged
    true = np.linalg.norm(B.numpy() - A @ found.x.numpy(), axis=0) / np.linalg.norm(B.numpy(), axis=0).clip(1e-300)
    assert (true <= 1.02e-4).all()
    np.testing.assert_allclose(found.relative_residuals, true, atol=2e-6)
    assert found.x[:, 1].abs().max() == 0.0
    want = np.linalg.solve(A, B.numpy())
    assert np.abs(found.x.numpy() - want).max() <= 1e-4 * np.linalg.cond(A) * np.abs(want).max()
    again = jacana.SDD(rtol=1e-4).solve(covariance, B, start=found.x)
    assert again.steps < found.steps


@pytest.mark.parametrize("words", [{"max_epochs": 30}, {"step": 1e300, "max_epochs": 30}], ids=str)
def test_what_does_not_converge_is_said_and_finite(words):
    net, x = networks()["mlp"]
    covariance = Covariance(jacana.NTK(net, x), torch.full((120,), 1e-4, dtype=DOUBLE))
    right = random(120, 2)
    with pytest.warns(jacana.errors.NotConverged, match=r"epochs.*another step"):
        found = jacana.SDD(**words).solve(covariance, right)
    assert not found.converged
    assert bool(torch.isfinite(found.x).all())
    left = right - covariance.to_dense() @ found.x
    oracles.assert_close(found.remainder, left, DOUBLE, scale=float(left.abs().max()), condition=1e6)


def test_a_step_that_is_too_long_is_shortened():
    net, x = networks()["mlp"]
    covariance = Covariance(jacana.NTK(jacana.linearize(net, batch_size=7), x), torch.full((120,), 30.0, dtype=DOUBLE))
    assert jacana.SDD(rtol=1e-3, step=100.0).solve(covariance, random(120, 2)).converged


@NETWORKS
def test_posteriors(name):
    net, x = networks()[name]
    y = random(len(x), net(x[:1]).shape[1], seed=3)
    gp = jacana.TangentGP(jacana.linearize(net, batch_size=16), 0.5)
    new = torch.cat([x[:3], 5.0 * x[3:6]])
    exact = gp.condition(x, y, 5.0, method=jacana.FunctionSpace()).predict(new)
    for method in (jacana.FunctionSpace(jacana.SDD(rtol=1e-3)), jacana.Pathwise(2, jacana.SDD(rtol=1e-3))):
        found = gp.condition(x, y, 5.0, method=method)
        torch.testing.assert_close(found.predict(new).mean, exact.mean, rtol=0.0, atol=0.01 * float(y.std()))
        loader = DataLoader(TensorDataset(x, y), batch_size=11)
        streamed = gp.condition(loader, noise_std=5.0, method=method)
        torch.testing.assert_close(streamed.predict(new).mean, exact.mean, rtol=0.0, atol=0.01 * float(y.std()))
    ratio = gp.condition(x, y, 5.0, method=jacana.FunctionSpace(jacana.SDD())).predict(new).variance / exact.variance
    assert 1.0 - 1e-6 < float(ratio.min()) <= float(ratio.max()) < 1.02


def test_no_variance_is_below_the_exact_one():
    net, x = networks()["mlp"]
    y = random(60, 2, seed=3)
    gp = jacana.TangentGP(net)
    new = torch.cat([x[:5], 10 * x[5:10]])
    exact = gp.condition(x, y, 0.05, method=jacana.FunctionSpace()).predict(new).variance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jacana.errors.NotConverged)
        method = jacana.FunctionSpace(jacana.SDD(rtol=0.5, max_epochs=5))
        found = gp.condition(x, y, 0.05, method=method).predict(new).variance
    assert bool((found >= exact * (1 - 1e-6)).all())


def test_the_same_answer_every_time():
    net, x = networks()["mlp"]
    covariance = Covariance(jacana.NTK(net, x), torch.full((120,), 30.0, dtype=DOUBLE))
    one, two = (jacana.SDD().solve(covariance, random(120, 1)).x for _ in range(2))
    assert torch.equal(one, two)


def test_weight_space_has_no_rows(as_users_run_it):
    net, x = networks()["mlp"]
    with pytest.raises(jacana.errors.InvalidOption, match="CG"):
        jacana.TangentGP(net).condition(x, random(60, 2), 1.0, method=jacana.WeightSpace(jacana.SDD()))


@pytest.mark.parametrize(
    ("words", "name"),
    [({"rtol": 0.0}, "rtol"), ({"momentum": 1.0}, "momentum"), ({"step": -1.0}, "step"),
     ({"max_epochs": 0}, "max_epochs"), ({"rtol": True}, "rtol")],
)  # fmt: skip
def test_options_are_checked(words, name, as_users_run_it):
    with pytest.raises(jacana.errors.InvalidOption, match=name):
        jacana.SDD(**words)
