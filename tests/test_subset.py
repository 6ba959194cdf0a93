"""The preconditioner from some of the examples: what it says it is, and a short iteration in weight space."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana.linearization import Prior, Products
from jacana.operators import Covariance, WhitenedFisher
from tests import oracles
from tests.test_solvers import DOUBLE, NETWORKS, networks, random

Subset = jacana.preconditioners.Subset


def system(name, noise, prior_std):
    net, x = networks()[name]
    lin = jacana.linearize(net)
    products = Products(lin, x)
    at = torch.zeros(products.n, products.c, dtype=DOUBLE)
    prior = Prior.of(lin.network, prior_std)
    fisher = WhitenedFisher(products, prior, jacana.Gaussian(noise).curvature_root(at))
    J = oracles.jacobian(net, x) * oracles.prior_deviations(net, prior_std)
    sigma = jacana.Gaussian(noise).variances(products.n, products.c, torch.device("cpu")).sqrt().numpy().reshape(-1, 1)
    return Covariance(fisher, torch.ones(lin.n_parameters, dtype=DOUBLE)), J / sigma, products


@NETWORKS
@pytest.mark.parametrize("size", [5, None])
@pytest.mark.parametrize("own_noise", [False, True])
def test_it_is_the_matrix_that_it_says(name, size, own_noise):
    net, x = networks()[name]
    c = net(x[:1]).shape[1]
    noise = 0.3 + torch.rand(len(x), c, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) if own_noise else 0.3
    covariance, R, products = system(name, noise, 0.7)
    n, p = products.n, R.shape[1]
    A = np.eye(p) + R.T @ R
    np.testing.assert_allclose(covariance.to_dense().numpy(), A, atol=1e-9 * np.abs(A).max())
    np.testing.assert_allclose(covariance.diagonal().numpy(), np.diag(A), rtol=1e-9)
    np.testing.assert_allclose(covariance.precise_times(torch.eye(p, dtype=DOUBLE)), A, atol=1e-9 * np.abs(A).max())
    prepared = Subset(size).prepare(covariance)
    m = n if size is None else size
    index = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:m].sort().values
    some = R.reshape(n, c, p)[index.numpy()].reshape(-1, p)
    M = np.eye(p) + (n / m) * some.T @ some
    identity = prepared.solve(torch.from_numpy(M)).numpy()
    np.testing.assert_allclose(identity, np.eye(p), atol=1e-8 * np.linalg.cond(M))
    assert prepared.log_determinant == pytest.approx(np.linalg.slogdet(M)[1], rel=1e-8)
    freedom = np.trace(np.linalg.solve(M, M - np.eye(p)))
    assert prepared.freedom == pytest.approx(freedom, rel=1e-6)
    assert prepared.is_below == (size is None)
    drawn = prepared.sample(20_000, torch.Generator().manual_seed(0)).numpy()
    assert np.abs(np.cov(drawn) - M).max() < 0.1 * np.abs(M).max()  # six standard errors: √(2 / 20,000) · 6 = .06


@NETWORKS
def test_with_all_examples_a_step_is_enough(name):
    net, x = networks()[name]
    y = random(len(x), net(x[:1]).shape[1], seed=3)
    gp = jacana.TangentGP(net)
    post = gp.condition(x, y, 0.1, method=jacana.WeightSpace(jacana.CG(rtol=1e-6)))
    assert post.solution.steps <= 2
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    streamed = gp.condition(loader, noise_std=0.1, method=jacana.WeightSpace(jacana.CG(rtol=1e-6)))
    scale = float(post.weights.abs().max())
    torch.testing.assert_close(streamed.weights, post.weights, rtol=0.0, atol=1e-4 * scale)


def test_it_shortens_the_iteration():
    net, x = networks()["mlp"]
    y = random(60, 2, seed=3)
    steps = {}
    for preconditioner in (None, Subset(40)):
        method = jacana.WeightSpace(jacana.CG(rtol=1e-6, preconditioner=preconditioner, max_steps=3000))
        steps[preconditioner] = jacana.TangentGP(net).condition(x, y, 0.01, method=method).solution.steps
    assert 2 * steps[Subset(40)] < steps[None]


def test_it_is_for_weight_space(as_users_run_it):
    net, x = networks()["mlp"]
    method = jacana.FunctionSpace(jacana.CG(preconditioner=Subset()))
    with pytest.raises(jacana.errors.InvalidOption, match="PivotedCholesky"):
        jacana.TangentGP(net).condition(x, random(60, 2), 0.1, method=method)
    with pytest.raises(jacana.errors.InvalidOption, match="size"):
        Subset(0)


@pytest.mark.parametrize("preconditioner", [None, jacana.preconditioners.Diagonal(), Subset(20)], ids=str)
def test_what_a_few_examples_say_is_heard_beside_what_all_say(preconditioner):
    """The right-hand side is 1e7 times larger for one weight; the other is known to a tenth all the same."""
    net = torch.nn.Linear(2, 1, bias=False).double()
    x = torch.stack([torch.full((100,), 1000.0), torch.tensor([0.01, -0.01]).repeat(50)], dim=1).double()
    y = 0.001 * x[:, :1] + x[:, 1:]
    gp = jacana.TangentGP(net, mean="zero")
    exact = gp.condition(x, y, 0.01, method=jacana.WeightSpace())
    post = gp.condition(x, y, 0.01, method=jacana.WeightSpace(jacana.CG(preconditioner=preconditioner)))
    std = exact.predict(torch.eye(2, dtype=DOUBLE)).std.flatten()
    assert float(((post.weights - exact.weights) / std).abs().max()) < 1e-2


def test_a_share_that_rounding_hides():
    net = torch.nn.Linear(1, 1).double()
    x = 1e3 + random(5000, 1)
    gp = jacana.TangentGP(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jacana.errors.NotConverged)  # it may say so, but neither fail nor hang
        post = gp.condition(x, 2.0 * x, 1e-3, method=jacana.WeightSpace(jacana.CG(rtol=1e-3)))
    assert bool(torch.isfinite(post.weights).all())
