"""Laws of the exact posterior: each against dense matrices, in float64 and float32, from both sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from jacana import FunctionSpace, Gaussian, WeightSpace
from tests import oracles, problems, zoo
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE, SINGLE = torch.float64, torch.float32
METHODS = {"function space": FunctionSpace(), "weight space": WeightSpace()}

PROBLEMS = pytest.mark.parametrize("name", problems.BY_NAME)
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
FEW = pytest.mark.parametrize("name", ["p < nc, c = 2", "p > nc, c = 2", "p > n, y (n,)", "n = 1, c = 3"])


def test_the_problems_are_what_they_are_called():
    for name in ("p < nc, c = 2", "p > nc, c = 2", "p < n, y (n,)", "p > n, y (n,)"):
        it = problem(name)
        assert (it.p < it.n * it.c) == name.startswith("p <")
    assert all(problem(name).condition < 2e3 for name in problems.BY_NAME)


# Against the oracle ----------------------------------------------------------------------------------


@PROBLEMS
@BOTH
def test_mean_is_the_oracles(name, method, dtype):
    it = problem(name, dtype)
    prediction = it.condition_on_data(method).predict(it.x_new)
    assert prediction.mean.dtype == DOUBLE
    it.close(prediction.mean, it.shaped(it.posterior.mean), "mean", scale=it.size)


@PROBLEMS
@BOTH
def test_covariance_is_the_oracles(name, method, dtype):
    it = problem(name, dtype)
    prediction = it.condition_on_data(method).predict(it.x_new)
    scale = np.abs(it.K_new).max()
    covariance = prediction.covariance
    assert covariance.dtype == DOUBLE
    it.close(covariance, it.posterior.covariance, "covariance", scale=scale)
    it.close(prediction.variance, it.shaped(it.posterior.variance), "variance", scale=scale)
    it.close(prediction.std**2, it.shaped(it.posterior.variance), "std²", scale=scale)
    oracles.assert_close(covariance, covariance.T, DOUBLE)
    assert torch.linalg.eigvalsh((covariance + covariance.T) / 2).min() >= -1e-12 * scale


@PROBLEMS
@BOTH
def test_evidence_is_the_normal_log_density(name, method, dtype):
    it = problem(name, dtype)
    got = it.condition_on_data(method).log_evidence
    assert isinstance(got, float)
    it.close(got, it.log_evidence, "log evidence", scale=max(abs(it.log_evidence), it.n * it.c))


@PROBLEMS
@BOTH
def test_weights_are_the_oracles(name, method, dtype):
    it = problem(name, dtype)
    weights = it.condition_on_data(method).weights
    assert weights.dtype == DOUBLE
    want = it.weights.mean[:, 0]
    it.close(weights, want, "weights", scale=np.abs(want).max())


@PROBLEMS
@BOTH
def test_prediction_at_the_data(name, method, dtype):
    it = problem(name, dtype)
    prediction = it.condition_on_data(method).predict(it.x)
    it.close(prediction.mean, it.shaped(it.at_data.mean), "mean at the data", scale=it.size)
    it.close(prediction.variance, it.shaped(it.at_data.variance), "variance at the data", scale=np.abs(it.K).max())


@PROBLEMS
def test_function_space_is_weight_space(name, dtype):
    """Mean, full covariance, evidence and weights, to a small multiple of eps · cond(K + Σ)."""
    it = problem(name, dtype)
    left, right = (it.condition_on_data(method) for method in METHODS.values())
    one, two = left.predict(it.x_new), right.predict(it.x_new)
    it.close(one.mean, two.mean, "mean", scale=it.size)
    it.close(one.covariance, two.covariance, "covariance", scale=np.abs(it.K_new).max())
    it.close(left.log_evidence, right.log_evidence, "evidence", scale=max(abs(it.log_evidence), it.n * it.c))
    it.close(left.weights, right.weights, "weights")


@PROBLEMS
def test_the_default_method_is_one_of_both_and_right(name):
    it = problem(name)
    post = it.condition_on_data()
    assert isinstance(post.method, FunctionSpace | WeightSpace)
    assert isinstance(post.method, WeightSpace if it.p < it.n * it.c else FunctionSpace)
    it.close(post.predict(it.x_new).mean, it.shaped(it.posterior.mean), "mean", scale=it.size)
    it.close(post.predict(it.x_new).covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())


def test_both_sides_are_contracted_in_float64():
    """From float32 Jacobians a Gram contracted in float32 spoils the mean, one contracted in float64 does not."""
    case = zoo.Case("ill", lambda: zoo.mlp(2, 30, 1), zoo.vectors(2))
    net, x, x_new = case.net(SINGLE), case.x(40, SINGLE), case.x(60, SINGLE)
    J, J_new = oracles.jacobian(net, x), oracles.jacobian(net, x_new)
    mean, mean_new = oracles.outputs(net, x), oracles.outputs(net, x_new)
    y = np.sin(2 * x.double().numpy()[:, :1]) + mean
    known = {"J": J, "s": np.ones(J.shape[1]), "mean": mean, "y": y, "sigma": 1e-3}
    want = oracles.condition_on_functions(**known, J_new=J_new, mean_new=mean_new).mean

    K = (J.astype(np.float32) @ J.T.astype(np.float32)).astype(np.float64)
    careless = mean_new + (J_new @ J.T) @ np.linalg.solve(K + 1e-6 * np.eye(40), y - mean)
    wrong = np.abs(careless - want).max() / np.abs(want).max()
    gp = jacana.TangentGP(net)
    for method in METHODS.values():
        got = gp.condition(x, torch.from_numpy(y), 1e-3, method=method).predict(x_new).mean.numpy()
        off = np.abs(got - want).max() / np.abs(want).max()
        assert off < 2e-3 < wrong / 5, (method, off, wrong)


# The prior and the limits ----------------------------------------------------------------------------


@PROBLEMS
def test_before_any_data_it_is_the_prior(name, dtype):
    it = problem(name, dtype)
    prior = it.gp.predict(it.x_new)
    returned = it.net(it.x_new).ndim
    shaped = it.m_new[:, 0] if returned == 1 else it.m_new
    oracles.assert_close(prior.mean, shaped, dtype, scale=max(np.abs(it.m_new).max(), 1.0))
    oracles.assert_close(prior.covariance, it.K_new, dtype)
    oracles.assert_close(prior.variance, np.diag(it.K_new).reshape(shaped.shape), dtype, scale=np.abs(it.K_new).max())
    assert prior.mean.dtype == prior.covariance.dtype == DOUBLE


@PROBLEMS
@BOTH
def test_large_noise_gives_the_prior(name, method, dtype):
    """|mean − m| ≤ λ_max(K) |r| / σ², and the variance lacks at most as much."""
    it = problem(name, dtype)
    post = it.gp.condition(it.x, it.y, 1e5, method=method).predict(it.x_new)
    prior = it.gp.predict(it.x_new)
    largest = np.linalg.norm(np.vstack([it.J, it.J_new]) * it.s, 2) ** 2
    allowed = largest * np.linalg.norm(it.Y - it.m) * 1e-10
    rounding = 64 * oracles.eps(dtype)
    assert np.abs(post.mean.numpy() - it.shaped(it.m_new)).max() <= allowed + rounding * it.size
    lacking = prior.covariance - post.covariance
    assert lacking.abs().max() <= largest**2 * 1e-10 + rounding * np.abs(it.K_new).max()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, DOUBLE) for name in ("p > nc, c = 2", "p > n, y (n,)", "n = 1, c = 3", "n = 1, c = 1", "mean zero")]
    + [(name, SINGLE) for name in ("p > n, y (n,)", "n = 1, c = 3", "n = 1, c = 1")],
)
@BOTH
def test_small_noise_interpolates_where_the_kernel_has_full_rank(name, method, dtype):
    it = problem(name, dtype)
    assert np.linalg.matrix_rank(it.K) == it.n * it.c
    sigma = 1e-4
    prediction = it.gp.condition(it.x, it.y, sigma, method=method).predict(it.x)
    eigenvalues = np.linalg.eigvalsh(it.K)
    shrinkage = sigma**2 / eigenvalues.min() * np.linalg.norm(it.Y - it.m)
    rounding = 64 * oracles.eps(dtype) * eigenvalues.max() / eigenvalues.min() * it.size
    assert shrinkage + rounding < 0.05, "the problem is too hard for this to be a test"
    assert np.abs(prediction.mean.numpy() - it.y.numpy()).max() <= shrinkage + rounding
    assert prediction.variance.max() <= 2 * sigma**2 + rounding


@pytest.mark.parametrize(
    "name", ["p < nc, c = 2", "p > nc, c = 2", "p < n, y (n,)", "one noise an output", "n = 1, c = 1"]
)
@pytest.mark.parametrize("sigma", [1e-6, 1e-3])
@BOTH
def test_variances_are_never_negative(name, sigma, method, dtype):
    """At σ = 1e-6 cond(K + Σ) is 1e13; sixty digits say what is right, and Joseph's form stays positive.

    Function space owes far more than eps · cond there; weight space, whose F has lost the prior, owes no more.
    """
    it = problem(name, dtype)
    post = it.gp.condition(it.x, it.y, sigma, method=method)
    for J, m, x in ((it.J, it.m, it.x), (it.J_new, it.m_new, it.x_new)):
        exact = oracles.condition_exactly(it.J, it.s, it.m, it.Y, sigma, J, m)
        prediction = post.predict(x)
        variance, covariance = prediction.variance.numpy().reshape(-1), prediction.covariance
        prior = np.diag((J * it.s**2) @ J.T)
        condition = (np.linalg.norm(it.K, 2) + sigma**2) / sigma**2
        assert (variance >= 0).all()
        assert (covariance.diagonal() >= 0).all()
        assert np.isfinite(prediction.std.numpy()).all()
        trusted = 1e3 if dtype == SINGLE else 1e8 if isinstance(method, FunctionSpace) else condition / 64
        slack = 64 * oracles.eps(dtype) * min(condition, trusted) * prior.max()
        assert (np.abs(variance - exact.variance.reshape(-1)) <= slack).all()
        assert (variance <= prior * (1 + 1e-5) + slack).all()
        if x is it.x and dtype == DOUBLE:  # at the data it is at most σ²: twelve digits of the prior cancel
            np.testing.assert_allclose(variance, exact.variance.reshape(-1), rtol=1e-2)


@pytest.mark.parametrize("name", ["p > nc, c = 2", "p > n, y (n,)", "n = 1, c = 3", "one noise an output, p > nc"])
def test_a_variance_of_all_but_nothing_is_still_right(name):
    """Prior variance 1e4, noise variance 1e-12: what k** − k*ᵀ A⁻¹ k* leaves in float64 is rounding, often negative."""
    it = problem(name)
    s, sigma = 100 * it.s, 1e-6
    gp = jacana.TangentGP(it.net, prior_std=100 * it.spec.prior_std, mean=it.spec.mean)
    prediction = gp.condition(it.x, it.y, sigma, method=FunctionSpace()).predict(it.x)
    exact = oracles.condition_exactly(it.J, s, it.m, it.Y, sigma, it.J, it.m)
    K = (it.J * s**2) @ it.J.T
    naive = np.diag(K - K @ np.linalg.solve(K + sigma**2 * np.eye(len(K)), K))
    wanted = np.diag(exact.covariance)
    assert (np.abs(naive - wanted) > 0.1 * wanted).any(), "the short form is right too: no test"
    np.testing.assert_allclose(prediction.variance.reshape(-1), wanted, rtol=1e-3)
    np.testing.assert_allclose(prediction.covariance.diagonal(), wanted, rtol=1e-3)


@PROBLEMS
@BOTH
def test_targets_that_are_the_prior_mean_change_nothing_but_the_variance(name, method, dtype):
    """Zero right-hand sides."""
    it = problem(name, dtype)
    y = torch.from_numpy(it.shaped(it.m).copy())
    post = it.gp.condition(it.x, y, it.noise_argument, method=method)
    assert post.weights.abs().max() <= 64 * oracles.eps(dtype) * it.condition * np.abs(it.J).max() * it.size * 4
    prediction = post.predict(it.x_new)
    it.close(prediction.mean, it.shaped(it.m_new), "mean", scale=it.size)
    it.close(prediction.covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())
    want = oracles.log_evidence(**{**it.known, "y": it.m})
    it.close(post.log_evidence, want, "log evidence", scale=max(abs(want), it.n * it.c))


# Data in parts, in another order, in batches ---------------------------------------------------------


@pytest.mark.parametrize("name", [s.name for s in problems.SPECS if s.n >= 4])
@BOTH
@pytest.mark.parametrize("steps", [2, 3])
def test_conditioning_in_steps_is_conditioning_at_once(name, method, steps, dtype):
    it = problem(name, dtype)
    cuts = np.array_split(np.arange(it.n), steps)
    per_example = np.ndim(it.noise_std) == 2
    post = None
    for part in cuts:
        x, y = it.x[part], it.y[part]
        noise = it.noise_argument[part] if per_example else it.noise_argument
        if post is None:
            post = it.gp.condition(x, y, noise, method=method)
        else:
            post = post.condition(x, y, noise) if per_example else post.condition(x, y)
    assert type(post.method) is type(method)
    prediction = post.predict(it.x_new)
    it.close(prediction.mean, it.shaped(it.posterior.mean), "mean", scale=it.size)
    it.close(prediction.covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())
    it.close(post.log_evidence, it.log_evidence, "log evidence", scale=max(abs(it.log_evidence), it.n * it.c))
    it.close(post.weights, it.weights.mean[:, 0], "weights")


@BOTH
def test_more_data_may_come_with_another_noise(method):
    it = problem("p > nc, c = 2")
    sigma = np.concatenate([np.full((2, 2), 0.3), np.full((3, 2), 0.9)])
    post = it.gp.condition(it.x[:2], it.y[:2], 0.3, method=method).condition(it.x[2:], it.y[2:], 0.9)
    want = oracles.condition_on_functions(**{**it.known, "sigma": sigma}, J_new=it.J_new, mean_new=it.m_new)
    it.close(post.predict(it.x_new).mean, want.mean, "mean", scale=it.size)
    it.close(post.predict(it.x_new).covariance, want.covariance, "covariance", scale=np.abs(it.K_new).max())
    it.close(post.log_evidence, oracles.log_evidence(**{**it.known, "sigma": sigma}), "evidence", scale=10.0)


@BOTH
def test_conditioning_leaves_the_earlier_posterior_as_it_was(method):
    it = problem("p > nc, c = 2")
    first = it.gp.condition(it.x[:3], it.y[:3], 0.3, method=method)
    before = first.predict(it.x_new)
    mean, covariance, evidence = before.mean.clone(), before.covariance.clone(), first.log_evidence
    second = first.condition(it.x[3:], it.y[3:])
    second.predict(it.x_new).covariance  # noqa: B018
    after = first.predict(it.x_new)
    assert torch.equal(after.mean, mean)
    assert torch.equal(after.covariance, covariance)
    assert first.log_evidence == evidence
    prior = it.gp.predict(it.x_new)
    oracles.assert_close(prior.covariance, it.K_new, DOUBLE)


@BOTH
def test_posteriors_hold_their_own_data(method):
    """What the user does to x and y afterwards does not reach it."""
    it = problem("p > nc, c = 2")
    x, y = it.x.clone(), it.y.clone()
    post = it.gp.condition(x, y, 0.3, method=method)
    mean = post.predict(it.x_new).mean.clone()
    x.fill_(9.0)
    y.fill_(9.0)
    again = post.predict(it.x_new)
    assert torch.equal(again.mean, mean)
    it.close(again.covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())
    it.close(post.log_evidence, it.log_evidence, "evidence", scale=max(abs(it.log_evidence), 10.0))
    more = post.condition(it.x_new, torch.zeros(it.spec.m, it.c))
    together = it.gp.condition(torch.cat([it.x, it.x_new]), torch.cat([it.y, torch.zeros(it.spec.m, it.c)]), 0.3)
    it.close(more.predict(it.x).mean, together.predict(it.x).mean, "mean of more data", scale=it.size)


@FEW
@BOTH
def test_order_of_examples_does_not_matter(name, method, dtype):
    it = problem(name, dtype)
    order = np.random.default_rng(0).permutation(it.n)
    post = it.gp.condition(it.x[order], it.y[order], it.noise_argument, method=method)
    it.close(post.predict(it.x_new).mean, it.shaped(it.posterior.mean), "mean", scale=it.size)
    it.close(post.predict(it.x_new).covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())
    it.close(post.log_evidence, it.log_evidence, "evidence", scale=max(abs(it.log_evidence), 10.0))
    new = np.arange(it.spec.m)[::-1].copy()
    turned = it.condition_on_data(method).predict(it.x_new[new])
    it.close(turned.mean, it.shaped(it.posterior.mean)[new], "mean of turned points", scale=it.size)
    it.close(turned.variance, it.shaped(it.posterior.variance)[new], "variance of turned", scale=np.abs(it.K_new).max())


@FEW
@BOTH
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batch_size_does_not_matter(name, method, batch_size):
    it = problem(name)
    lin = jacana.linearize(it.net, batch_size=batch_size)
    gp = jacana.TangentGP(lin, prior_std=it.spec.prior_std, mean=it.spec.mean)
    post = gp.condition(it.x, it.y, it.noise_argument, method=method)
    it.close(post.predict(it.x_new).mean, it.shaped(it.posterior.mean), "mean", scale=it.size)
    it.close(post.predict(it.x_new).covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())
    it.close(post.log_evidence, it.log_evidence, "evidence", scale=max(abs(it.log_evidence), 10.0))


@BOTH
def test_points_alone_are_predicted_as_among_others(method):
    it = problem("p > nc, c = 2")
    post = it.condition_on_data(method)
    together = post.predict(it.x_new)
    for i in range(it.spec.m):
        alone = post.predict(it.x_new[i : i + 1])
        it.close(alone.mean, together.mean[i : i + 1], "mean", scale=it.size)
        it.close(alone.covariance, together.covariance[2 * i : 2 * i + 2, 2 * i : 2 * i + 2], "covariance", scale=1.0)


@BOTH
def test_data_from_a_loader(method, generators_untouched):
    it = problem("p > nc, c = 2")
    loader = DataLoader(TensorDataset(it.x, it.y), batch_size=2)
    post = it.gp.condition(loader, noise_std=0.3, method=method)
    it.close(post.predict(it.x_new).mean, it.posterior.mean, "mean", scale=it.size)
    assert post.predict(it.x_new).mean.shape == (it.spec.m, 2)
    points = DataLoader(TensorDataset(it.x_new), batch_size=2)
    it.close(post.predict(points).mean, it.posterior.mean, "mean at loaded points", scale=it.size)
    it.close(post.predict(points).covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())
    more = it.gp.condition(it.x[:1], it.y[:1], 0.3, method=method).condition(
        DataLoader(TensorDataset(it.x[1:], it.y[1:]), batch_size=3)
    )
    it.close(more.predict(it.x_new).mean, it.posterior.mean, "mean of more data", scale=it.size)


def test_a_shuffling_loader_is_refused_or_passes_over_it_agree():
    it = problem("p > nc, c = 2")
    loader = DataLoader(TensorDataset(it.x, it.y), batch_size=2, shuffle=True)
    try:
        post = it.gp.condition(loader, noise_std=0.3)
    except jacana.errors.JacanaError as error:
        assert "shuffle" in str(error)  # noqa: PT017
        return
    it.close(post.predict(it.x_new).mean, it.posterior.mean, "mean", scale=it.size)
    it.close(post.predict(it.x_new).covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())
    it.close(post.log_evidence, it.log_evidence, "evidence", scale=max(abs(it.log_evidence), 10.0))


# What goes in ----------------------------------------------------------------------------------------


TARGETS = {
    "float32 tensor": lambda y: y.float(),
    "numpy": lambda y: y.numpy(),
    "numpy float32": lambda y: y.numpy().astype(np.float32),
    "read-only numpy": lambda y: _read_only(y.numpy()),
    "Fortran order": lambda y: np.asfortranarray(y.numpy()),
    "requires grad": lambda y: y.clone().requires_grad_(True),
}


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("convert", TARGETS.values(), ids=TARGETS)
def test_targets_of_many_kinds(convert):
    it = problem("p > nc, c = 2")
    post = it.gp.condition(it.x, convert(it.y), 0.3)
    want = it.posterior.mean
    oracles.assert_close(post.predict(it.x_new).mean, want, SINGLE, condition=it.condition, scale=it.size)


def test_targets_are_taken_in_double_precision():
    it = problem("p > n, y (n,)", SINGLE)
    y = it.y + 1e-9
    one = it.gp.condition(it.x, it.y, 0.3).weights
    two = it.gp.condition(it.x, y, 0.3).weights
    assert (one != two).any()


def test_integer_and_boolean_targets():
    it = problem("p > n, y (n,)")
    labels = torch.tensor([0, 1, 1, 0, 2, 1])
    want = it.gp.condition(it.x, labels.double(), 0.3).predict(it.x_new).mean
    assert torch.equal(it.gp.condition(it.x, labels, 0.3).predict(it.x_new).mean, want)
    assert torch.equal(it.gp.condition(it.x, labels.numpy(), 0.3).predict(it.x_new).mean, want)


NOISES = {
    "int": (1, 1.0),
    "numpy scalar": (np.float64(0.4), 0.4),
    "0-d tensor": (torch.tensor(0.4, dtype=DOUBLE), 0.4),
    "list": ([0.2, 0.6], [0.2, 0.6]),
    "tuple": ((0.2, 0.6), [0.2, 0.6]),
    "array": (np.array([0.2, 0.6]), [0.2, 0.6]),
    "(n, c) array": (problems.per_example(5, 2), problems.per_example(5, 2)),
}


@pytest.mark.parametrize(("noise", "meant"), NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("through", ["noise_std", "likelihood"])
def test_noise_of_many_kinds(noise, meant, through):
    it = problem("p > nc, c = 2")
    options = {"noise_std": noise} if through == "noise_std" else {"likelihood": Gaussian(noise)}
    post = it.gp.condition(it.x, it.y, **options)
    want = oracles.condition_on_functions(**{**it.known, "sigma": meant}, J_new=it.J_new, mean_new=it.m_new)
    it.close(post.predict(it.x_new).mean, want.mean, "mean", scale=it.size)
    assert isinstance(post.likelihood, Gaussian)
    it.close(np.broadcast_to(np.asarray(post.likelihood.noise_std), np.shape(meant)), meant, "noise_std")


def test_what_a_posterior_says_about_itself():
    it = problem("p > nc, c = 2")
    likelihood = Gaussian(0.3)
    post = it.gp.condition(it.x, it.y, likelihood=likelihood, method=WeightSpace())
    assert post.likelihood == likelihood
    assert post.method == WeightSpace()


def test_options_are_values():
    assert FunctionSpace() == FunctionSpace()
    assert WeightSpace() == WeightSpace()
    assert Gaussian(0.1) == Gaussian(0.1)
    assert Gaussian(0.1) != Gaussian(0.2)
    for frozen, attribute in ((Gaussian(0.1), "noise_std"), (problem("mean zero").gp, "prior_std")):
        with pytest.raises((AttributeError, TypeError)):
            setattr(frozen, attribute, 0.5)


def test_the_model_takes_a_linearization_or_a_network():
    it = problem("p > nc, c = 2")
    lin = jacana.linearize(it.net)
    for thing in (it.net, lin):
        gp = jacana.TangentGP(thing, prior_std=1.0)
        it.close(gp.condition(it.x, it.y, 0.3).predict(it.x_new).mean, it.posterior.mean, "mean", scale=it.size)


def test_the_model_is_of_the_network_as_it_was():
    net = zoo.mlp().double()
    x, y = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    gp = jacana.TangentGP(net)
    post = gp.condition(x, y, 0.2)
    before = post.predict(x).mean.clone(), gp.predict(x).mean.clone()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(post.predict(x).mean, before[0])
    assert torch.equal(gp.predict(x).mean, before[1])


def test_a_linear_model_is_bayesian_linear_regression():
    """y = X w: the textbook's ridge estimate and covariance, with nothing of a network in it."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(8, 3, generator=generator, dtype=DOUBLE)
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE) + 0.1 * torch.randn(8, generator=generator, dtype=DOUBLE)
    A = x.T @ x / 0.1**2 + torch.eye(3, dtype=DOUBLE) / 2.0**2
    w = torch.linalg.solve(A, x.T @ y / 0.1**2)
    for method in METHODS.values():
        post = jacana.TangentGP(net, prior_std=2.0, mean="zero").condition(x, y, 0.1, method=method)
        oracles.assert_close(post.weights, w, DOUBLE, condition=1e4)
        prediction = post.predict(torch.eye(3, dtype=DOUBLE))
        oracles.assert_close(prediction.mean, w, DOUBLE, condition=1e4)
        oracles.assert_close(prediction.covariance, torch.linalg.inv(A), DOUBLE, condition=1e6)


def test_the_mean_moves_with_the_targets():
    """Fitted on y and on y + 10 it predicts ten apart where the kernel knows constants."""
    it = problem("p > n, y (n,)")
    one = it.gp.condition(it.x, it.y, 0.05).predict(it.x).mean
    two = it.gp.condition(it.x, it.y + 10, 0.05).predict(it.x).mean
    assert (two - one - 10).abs().max() < 0.5


@pytest.mark.parametrize(
    "name",
    [
        "LSTM",
        "TransformerEncoder with a padding mask",
        "BatchEncoding input",
        "tuple input",
        "custom Function, once differentiable",
        "output of a dataclass",
        "forward=",
        "cdist",
    ],
)
@BOTH
def test_posteriors_of_every_kind_of_network(name, method, dtype):
    case = zoo.BY_NAME[name]
    net, x, x_new = case.net(dtype), case.x(4, dtype), case.x(3, dtype)
    J, J_new = case.jacobian(net, x), case.jacobian(net, x_new)
    m, m_new = case.values(net, x), case.values(net, x_new)
    y = m + np.random.default_rng(0).normal(size=m.shape)
    s = np.full(J.shape[1], 0.7)
    want = oracles.condition_on_functions(J, s, m, y, 0.4, J_new, m_new)
    gp = jacana.TangentGP(jacana.linearize(net, **case.reading), prior_std=0.7)
    post = gp.condition(x, y, 0.4, method=method)
    condition = np.linalg.cond((J * s**2) @ J.T + 0.16 * np.eye(len(J)))
    oracles.assert_close(post.predict(x_new).mean, want.mean, dtype, condition=condition, scale=np.abs(y).max())
    scale = np.abs(J_new @ J_new.T).max()
    oracles.assert_close(post.predict(x_new).covariance, want.covariance, dtype, condition=condition, scale=scale)


@given(
    n=st.integers(1, 6),
    hidden=st.integers(1, 5),
    c=st.integers(1, 3),
    log_noise=st.floats(-1.5, 1),
    log_prior=st.floats(-1, 0.5),
    seed=st.integers(0, 1000),
)
def test_both_sides_are_right_for_any_shape(n, hidden, c, log_noise, log_prior, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = zoo.mlp(2, hidden, c).double()
        x, x_new, y = (torch.randn(k, d, dtype=DOUBLE) for k, d in ((n, 2), (2, 2), (n, c)))
    J, J_new, m, m_new = (f(net, z) for f in (oracles.jacobian, oracles.outputs) for z in (x, x_new))
    s, sigma = np.full(J.shape[1], 10**log_prior), 10**log_noise
    want = oracles.condition_on_functions(J, s, m, y.numpy(), sigma, J_new, m_new)
    condition = np.linalg.cond((J * s**2) @ J.T + sigma**2 * np.eye(n * c))
    for method in METHODS.values():
        post = jacana.TangentGP(net, prior_std=10**log_prior).condition(x, y, sigma, method=method)
        prediction = post.predict(x_new)
        oracles.assert_close(prediction.mean, want.mean, DOUBLE, condition=condition, scale=10.0)
        oracles.assert_close(prediction.covariance, want.covariance, DOUBLE, condition=condition, scale=100.0)
        evidence = oracles.log_evidence(J, s, m, y.numpy(), sigma)
        oracles.assert_close(post.log_evidence, evidence, DOUBLE, condition=condition, scale=max(abs(evidence), 10.0))
