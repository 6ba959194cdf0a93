"""NystromFeatures: variances never below the exact ones, and the exact posterior where all examples are landmarks."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import FunctionSpace, NystromFeatures
from jacana.operators import norm_bound
from tests import oracles
from tests.test_solvers import DOUBLE, NETWORKS, networks, random

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls


def data(name, dtype=DOUBLE):
    """A network, data with a noise of their own each, and new examples: on the data, near them and far away."""
    net, x = networks(dtype)[name]
    x = x[:24]
    y = random(len(x), net(x[:1]).shape[1], seed=3)
    noise = 0.2 + 0.4 * torch.rand(y.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    return net, x, y, noise, torch.cat([x[:2], x[2:4] + 0.3, 5 * x[4:5]])


def condition(gp, *args, method, **kwargs):
    """A posterior whose landmarks may be too few, without a word of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jacana.errors.NotConverged)
        return gp.condition(*args, method=method, **kwargs)


def dense(net, x, y, noise, new, chosen, s, std=0.7):
    """Mean, covariance and evidence from the formulas, by dense matrices; `chosen` are the landmarks."""
    c, J, J_new = y.shape[1], oracles.jacobian(net, x) * std, oracles.jacobian(net, new) * std
    rows = [i * c + k for i in chosen for k in range(c)]
    u, values, _ = np.linalg.svd(J[rows].T, full_matrices=False)
    basis = u[:, values > 1e-9 * values[0]]
    features, features_new, sigma = J @ basis, J_new @ basis, noise.numpy().reshape(-1)
    residual = (y.numpy() - oracles.outputs(net, x)).reshape(-1)
    A = np.eye(basis.shape[1]) + (features.T / sigma**2) @ features
    mean = features_new @ np.linalg.solve(A, features.T @ (residual / sigma**2))
    known = features_new @ np.linalg.solve(A, features_new.T)
    rest = J_new @ J_new.T - features_new @ features_new.T
    covariance = (1 + s + s * s) * known + (1 + s) * rest
    left = (J @ J.T - features @ features.T) / np.outer(sigma, sigma)
    evidence = scipy.stats.multivariate_normal(None, features @ features.T + np.diag(sigma**2)).logpdf(residual)
    return mean.reshape(-1, c) + oracles.outputs(net, new), covariance, evidence - 0.5 * np.trace(left), left


def drawn(n, rank, c, seed=0):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: -(-rank // c)].sort().values.tolist()


@NETWORKS
@pytest.mark.parametrize("rank", [1, 6, 14, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_is_what_the_formulas_say(name, rank, dtype):
    net, x, y, noise, new = data(name, dtype)
    c = y.shape[1]
    post = condition(jacana.TangentGP(net, 0.7), x, y, noise, method=NystromFeatures(rank))
    report = post._state.report
    chosen, s = drawn(len(x), rank, c), math.sqrt(report.unexplained)
    mean, covariance, evidence, left = dense(net, x, y, noise, new, chosen, s)
    assert report.rank == c * len(chosen)
    exact = np.linalg.norm(left, 2)
    assert exact <= report.unexplained <= 1.4 * exact
    loose = {"condition": 1e6} if dtype == DOUBLE else {"condition": 1e3}
    oracles.assert_close(report.trace, np.trace(left), dtype, **loose)
    prediction = post.predict(new)
    oracles.assert_close(prediction.mean, mean, dtype, **loose)
    oracles.assert_close(prediction.covariance, covariance, dtype, **loose)
    oracles.assert_close(prediction.covariance.diagonal(), prediction.variance.flatten(), DOUBLE, condition=1e6)
    oracles.assert_close(post.log_evidence, evidence, dtype, **loose)


@NETWORKS
@pytest.mark.parametrize("rank", [1, 4, 10, 20, 40])
@pytest.mark.parametrize("sigma", [1.0, 0.05])
def test_no_combination_of_values_has_less_variance_than_exactly(name, rank, sigma):
    """The difference of the joint covariances is positive semidefinite; that of the model without s is not."""
    net, x, y, noise, new = data(name)
    gp = jacana.TangentGP(net, 0.7)
    exact = gp.condition(x, y, sigma * noise, method=FunctionSpace())
    post = condition(gp, x, y, sigma * noise, method=NystromFeatures(rank))
    a, b = exact.predict(new).covariance, post.predict(new).covariance
    scale = float(gp.predict(new).variance.max())
    assert torch.linalg.eigvalsh(b - a).min() >= -1e-12 * scale
    assert post.log_evidence <= exact.log_evidence + 1e-9 * abs(exact.log_evidence)
    careless = post._state._projected.triangle.half_solve(post._state._landmarks.features(post.examples(new)))
    if rank < 20:
        assert torch.linalg.eigvalsh(careless.T @ careless - a).min() < -1e-3 * scale, "it holds of itself: no test"


@NETWORKS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_with_all_examples_it_is_the_exact_posterior(name, dtype):
    net, x, y, noise, new = data(name, dtype)
    gp, errors = jacana.TangentGP(net, 0.7), []
    exact = gp.condition(x, y, noise, method=FunctionSpace())
    a = exact.predict(new)
    for rank in (12, 36, y.numel(), 10**6, None):
        post = condition(gp, x, y, noise, method=NystromFeatures(rank))
        b = post.predict(new)
        errors.append(float(((b.variance / a.variance) - 1).abs().max()))
    assert errors[0] > 2 * errors[1] > 100 * errors[2]
    assert max(errors[2:]) < 1e-4
    assert post._state.report.unexplained < 1e-8
    oracles.assert_close(b.mean, a.mean, DOUBLE, condition=1e9)
    oracles.assert_close(b.covariance, a.covariance, DOUBLE, condition=1e10)
    oracles.assert_close(post.weights, exact.weights, DOUBLE, condition=1e9)
    oracles.assert_close(post.log_evidence, exact.log_evidence, DOUBLE, condition=1e8)


def test_far_from_the_data_it_is_the_prior():
    """Where the kernel with the data vanishes: no unit is on at both sides of zero."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight[:, 0] = torch.tensor([3.0, -3.0] * 4)
        net[0].weight[:, 1] = torch.randn(8, generator=generator, dtype=DOUBLE).clamp(-1, 1)
    x = torch.cat([1 + torch.rand(20, 1, generator=generator), torch.randn(20, 1, generator=generator).clamp(-1, 1)], 1)
    x, gp = x.double(), jacana.TangentGP(net)
    assert float(jacana.gram(net, x, -x).abs().max()) == 0.0
    for rank, known in ((1, False), (6, True)):
        post = condition(gp, x, random(20, 1), 0.1, method=NystromFeatures(rank))
        s = math.sqrt(post._state.report.unexplained)
        assert (s < 1e-3) == known
        prior, found = gp.predict(-x[:4]), post.predict(-x[:4])
        oracles.assert_close(found.covariance, (1 + s) * prior.covariance, DOUBLE)
        oracles.assert_close(found.mean, prior.mean, DOUBLE)


def test_landmarks_at_which_nothing_moves():
    net = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    gp, x = jacana.TangentGP(net), -torch.ones(5, 1, dtype=DOUBLE)
    post = gp.condition(x, torch.ones(5), 0.1, method=NystromFeatures(3))
    assert post._state.report.unexplained == 0.0
    oracles.assert_close(post.predict(-x).covariance, gp.predict(-x).covariance, DOUBLE)
    assert post.predict(x).variance.abs().max() == 0.0


def test_repeated_examples_and_a_small_noise():
    """Landmarks that say the same, and digits that cancel: still positive, and not below the exact ones."""
    net, x, y, _, new = data("mlp")
    gp = jacana.TangentGP(net)
    for sigma in (1e-2, 1e-4):
        exact = gp.condition(x[:6], y[:6], sigma / 2, method=FunctionSpace()).predict(new)
        for rank in (16, 48):
            many = [z[:6].repeat(4, 1) for z in (x, y)]
            post = condition(gp, *many, sigma, method=NystromFeatures(rank)).predict(new)
            assert bool((post.variance >= exact.variance * (1 - 1e-6)).all())
    assert bool((post.variance < exact.variance * 1.5).all())


@NETWORKS
def test_the_same_from_memory_from_a_loader_and_in_any_batches(name):
    net, x, y, _, new = data(name)
    method = NystromFeatures(10)
    want = condition(jacana.TangentGP(net), x, y, 0.4, method=method)
    for size in (7, 50):
        gp = jacana.TangentGP(jacana.linearize(net, batch_size=size))
        loader = DataLoader(TensorDataset(x, y), batch_size=size)
        for got in (condition(gp, x, y, 0.4, method=method), condition(gp, loader, noise_std=0.4, method=method)):
            a, b = want.predict(new), got.predict(new)
            oracles.assert_close(b.mean, a.mean, DOUBLE, condition=1e6)
            oracles.assert_close(b.covariance, a.covariance, DOUBLE, condition=1e6)
            oracles.assert_close(got.log_evidence, want.log_evidence, DOUBLE, condition=1e6)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    with pytest.raises(jacana.errors.InvalidData, match="order"):
        gp.condition(shuffled, noise_std=0.4, method=method)


def test_a_seed_is_a_draw(generators_untouched):
    net, x, y, noise, new = data("mlp")
    gp = jacana.TangentGP(net)
    one, two, three = (condition(gp, x, y, noise, method=NystromFeatures(8, seed)) for seed in (0, 0, 1))
    assert torch.equal(one.predict(new).covariance, two.predict(new).covariance)
    assert one._state.report == two._state.report
    assert not torch.equal(one.predict(new).covariance, three.predict(new).covariance)


@NETWORKS
@pytest.mark.parametrize("rank", [6, 20])
def test_samples_have_that_covariance(name, rank):
    """False alarm in one of a million runs."""
    net, x, y, noise, new = data(name)
    post = condition(jacana.TangentGP(net, 0.7), x, y, noise, method=NystromFeatures(rank))
    prediction = post.predict(new[2:5])
    samples = prediction.sample(4000, torch.Generator().manual_seed(0)).flatten(1)
    oracles.assert_gaussian_samples(samples, prediction.mean, prediction.covariance)
    exact = jacana.TangentGP(net, 0.7).condition(x, y, noise, method=FunctionSpace()).predict(new[2:5])
    with pytest.raises(AssertionError, match="covariance is off"):
        oracles.assert_gaussian_samples(samples, samples.mean(0), exact.covariance)


def test_more_data_keep_the_landmarks():
    net, x, y, noise, new = data("cnn")
    gp, old = jacana.TangentGP(net, 0.7), drawn(15, 12, 3)
    first = condition(gp, x[:15], y[:15], noise[:15], method=NystromFeatures(12))
    before = first.predict(new).covariance.clone()
    with pytest.warns(jacana.errors.NotConverged, match="landmarks"):
        more = first.condition(x[15:], y[15:], noise[15:])
    report = more._state.report
    mean, covariance, evidence, left = dense(net, x, y, noise, new, old, math.sqrt(report.unexplained))
    assert np.linalg.norm(left, 2) <= report.unexplained <= 1.4 * np.linalg.norm(left, 2)
    oracles.assert_close(more.predict(new).mean, mean, DOUBLE, condition=1e6)
    oracles.assert_close(more.predict(new).covariance, covariance, DOUBLE, condition=1e6)
    oracles.assert_close(more.log_evidence, evidence, DOUBLE, condition=1e6)
    assert more.n_examples == 24
    assert torch.equal(first.predict(new).covariance, before)
    loader = DataLoader(TensorDataset(x[:15], y[:15]), batch_size=4)
    streamed = condition(gp, loader, noise_std=0.4, method=NystromFeatures(12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jacana.errors.NotConverged)
        assert streamed.condition(x[15:], y[15:]).n_examples == 24


def test_too_few_landmarks_are_said_to_be():
    net, x, y, noise, _ = data("mlp")
    gp = jacana.TangentGP(net, 0.7)
    with pytest.warns(jacana.errors.NotConverged, match=r"larger rank \(now 2\)"):
        gp.condition(x, y, noise, method=NystromFeatures(2))
    enough = gp.condition(x, y, noise, method=NystromFeatures(40))  # warnings are errors
    assert 1e-4 < enough._state.report.unexplained < 1


def test_it_is_refused_where_it_cannot_be(monkeypatch):
    net, x, y, _, _ = data("mlp")
    gp = jacana.TangentGP(net)
    with pytest.raises(jacana.errors.InvalidOption, match="noise_std"):
        gp.condition(x, y, 0.0, method=NystromFeatures())
    post = gp.condition(x, y, 0.3, method=NystromFeatures())
    with pytest.raises(jacana.errors.InvalidOption, match="noise_std"):
        post.condition(x[:2], y[:2], 0.0)
    with pytest.raises(jacana.errors.InvalidOption, match="leave_one_out"):
        post.leave_one_out()
    monkeypatch.setattr("jacana.linearization.memory._free", lambda _: 2**16)
    with pytest.raises(jacana.errors.InsufficientMemory, match="rank"):
        gp.condition(x, y, 0.3, method=NystromFeatures(40))


@pytest.mark.parametrize(
    ("words", "name"),
    [({"rank": 0}, "rank"), ({"rank": 2.5}, "rank"), ({"rank": True}, "rank"), ({"seed": 0.5}, "seed")],
)
def test_options_are_checked(words, name):
    with pytest.raises(jacana.errors.InvalidOption, match=name):
        NystromFeatures(**words)


# The bound of the norm -------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", ["falling", "flat", "alone", "indefinite", "zero"])
def test_the_bound_is_one_and_near(spectrum):
    n = 200
    values = {"falling": torch.logspace(2, -6, n, dtype=DOUBLE), "flat": torch.full((n,), 3.0, dtype=DOUBLE),
              "alone": torch.eye(n, dtype=DOUBLE)[0], "indefinite": -torch.logspace(0, -3, n, dtype=DOUBLE),
              "zero": torch.zeros(n, dtype=DOUBLE)}[spectrum]  # fmt: skip
    basis, _ = torch.linalg.qr(random(n, n))
    size = float(values.abs().max())
    for seed in range(30):
        source = torch.Generator().manual_seed(seed)
        found = norm_bound(
            lambda v: basis @ (values[:, None] * (basis.T @ v)), n, device=values.device, generator=source
        )
        assert size * (1 - 1e-12) <= found <= 1.7 * size


def test_the_bound_fails_as_rarely_as_it_says():
    """One large eigenvalue, one probe: P(z² < ε) is .293 where .3 is allowed; 4,000 draws, six standard errors."""
    source = torch.Generator().manual_seed(0)

    def times(v):
        return torch.cat([v[:1], 0.01 * v[1:]])

    options = {"device": torch.device("cpu"), "generator": source, "n_steps": 3, "n_probes": 1, "failure": 0.3}
    failed = sum(norm_bound(times, 3, **options) < 1.0 for _ in range(4000)) / 4000
    assert abs(failed - 0.293) < 6 * math.sqrt(0.293 * 0.707 / 4000)
