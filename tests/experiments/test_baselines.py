"""Each baseline against a slow, obvious oracle that shares no code with it."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from experiments import baselines
from experiments.baselines import ablr, rbf


def linear_problem(n, d, c=1, seed=0):
    rng = np.random.default_rng(seed)
    phi, new = rng.normal(size=(n, d)) + 2.0, rng.normal(size=(6, d)) + 2.0
    y = phi @ rng.normal(size=(d, c)) + 5.0 + rng.normal(size=(n, c))
    return phi, y, new


def slow_last_layer(phi, y, new):
    """The same model by brute force: a bias of enormous variance, the evidence over a grid, dense solves."""
    n, big = len(y), 1e6
    best = (-np.inf, 0.0, 0.0)
    for prior in np.exp(np.linspace(-6, 4, 60)):
        for noise in np.exp(np.linspace(-5, 3, 60)):
            covariance = big + prior * phi @ phi.T + noise * np.eye(n)
            sign, log_volume = np.linalg.slogdet(covariance)
            evidence = -0.5 * (y @ np.linalg.solve(covariance, y) + log_volume)
            if sign > 0 and evidence > best[0]:
                best = (evidence, prior, noise)
    _, prior, noise = best
    covariance = big + prior * phi @ phi.T + noise * np.eye(n)
    cross = big + prior * new @ phi.T
    mean = cross @ np.linalg.solve(covariance, y)
    variance = big + prior * (new**2).sum(1) + noise - np.sum(cross * np.linalg.solve(covariance, cross.T).T, axis=1)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize(("n", "d"), [(30, 4), (8, 20)])
def test_last_layer_is_the_brute_force_posterior(n, d):
    phi, y, new = linear_problem(n, d)
    mean, std = baselines.last_layer(phi, y, new)
    slow_mean, slow_std = slow_last_layer(phi, y[:, 0], new)
    # The oracle's grid is 15 % wide in variance; what that does to the prediction is the tolerance.
    np.testing.assert_allclose(mean[:, 0], slow_mean, atol=0.15 * slow_std.mean())
    np.testing.assert_allclose(std[:, 0], slow_std, rtol=0.1)


def test_last_layer_treats_outputs_apart_and_shifts_with_the_targets():
    phi, y, new = linear_problem(25, 5, c=3)
    mean, std = baselines.last_layer(phi, y, new)
    for k in range(3):
        alone = baselines.last_layer(phi, y[:, k], new)
        np.testing.assert_allclose(mean[:, k], alone[0][:, 0])
        np.testing.assert_allclose(std[:, k], alone[1][:, 0])
    moved = baselines.last_layer(phi, y + 100.0, new)
    np.testing.assert_allclose(moved[0], mean + 100.0, rtol=1e-6)
    np.testing.assert_allclose(moved[1], std, rtol=1e-5)


def test_last_layer_of_constant_features_is_the_mean():
    y = np.array([1.0, 2.0, 6.0])
    mean, std = baselines.last_layer(np.ones((3, 2)), y, np.ones((4, 2)))
    np.testing.assert_allclose(mean, 3.0)
    np.testing.assert_allclose(std, np.sqrt(7.0 * 4.0 / 3.0))


def test_features_are_the_inputs_of_the_last_linear_layer_and_the_network_is_left_alone():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)).train()
    x = torch.randn(7, 3)
    features = baselines.features_of(net, x)
    np.testing.assert_allclose(features, torch.tanh(net[0](x)).detach().numpy(), rtol=1e-6)
    assert all(module.training for module in net.modules())
    assert not net[3]._forward_pre_hooks
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear"):
        baselines.features_of(nn.Flatten(), x)


def classification():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 2, generator=generator)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), x, (x[:, 0] > 0).long()


def test_fine_tuning_learns_chooses_by_its_scores_and_never_touches_the_network():
    net, x, y = classification()
    before = copy.deepcopy(net.state_dict())
    grid = {"rates": (1e-9, 3e-2), "steps": (0, 5, 60), "batch_size": 16, "seed": 3}
    tuned = baselines.fine_tune(net, x, y, loss=cross_entropy, folds=3, **grid)
    assert (tuned.rate, tuned.steps) == (3e-2, 60)
    assert tuned.scores[3e-2, 60] == min(tuned.scores.values())
    assert tuned.scores[3e-2, 60] < 0.5 * tuned.scores[1e-9, 60]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    everything = baselines.fine_tune_grid(net, x, y, loss=cross_entropy, **grid)
    assert set(everything) == set(tuned.scores)
    assert torch.equal(everything[3e-2, 60](x), tuned.net(x))
    assert torch.equal(everything[3e-2, 0](x), net(x))
    assert not tuned.net.training


def test_scores_are_held_out_losses():
    net, x, y = classification()
    target = torch.nn.functional.one_hot(y, 2).float()
    tuned = baselines.fine_tune(net, x, target, loss=mse_loss, rates=[1e-3], steps=[0], batch_size=8, folds=7, seed=0)
    # Without a step, what is held out is all the data, once.
    assert tuned.scores[1e-3, 0] == pytest.approx(mse_loss(net(x), target).item(), rel=1e-5)


def test_fine_tuning_repeats_itself_and_leaves_the_generator_alone():
    net, x, y = classification()
    net = nn.Sequential(net[0], nn.Dropout(0.5), net[2])
    settings = {"loss": cross_entropy, "rates": [1e-2], "steps": [10], "batch_size": 8, "seed": 5}
    before = torch.random.get_rng_state()
    first, second = (baselines.fine_tune_grid(net, x, y, **settings)[1e-2, 10] for _ in range(2))
    assert torch.equal(first(x), second(x))
    assert torch.equal(torch.random.get_rng_state(), before)


def smooth_problem(n=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, (n, 2))
    return x, np.sin(x[:, 0]) + 0.2 * x[:, 1] + 4.0 + 0.1 * rng.normal(size=n), rng.uniform(-3, 3, (9, 2))


def sklearn_gp(kernel, x, y):
    parts = ConstantKernel(kernel.amplitude**2) * RBF(kernel.lengths) + ConstantKernel(kernel.constant**2)
    model = GaussianProcessRegressor(parts + WhiteKernel(kernel.noise_std**2), alpha=0.0, optimizer=None)
    return model.fit(x, y - kernel.centre)


def test_rbf_gp_is_sklearns_at_the_same_hyper_parameters():
    x, y, new = smooth_problem()
    kernel = baselines.fit_rbf(x, y)
    mean, std = baselines.rbf_gp(x, y, new, kernel=kernel, block=4)
    oracle = sklearn_gp(kernel, x, y)
    slow_mean, slow_std = oracle.predict(new, return_std=True)
    np.testing.assert_allclose(mean, slow_mean + kernel.centre, rtol=1e-7)
    np.testing.assert_allclose(std, slow_std, rtol=1e-6)
    assert kernel.log_evidence == pytest.approx(oracle.log_marginal_likelihood_value_, rel=1e-8)
    assert kernel.noise_std == pytest.approx(0.1, rel=0.5)


def test_rbf_fit_has_the_evidence_that_sklearns_own_search_reaches():
    x, y, _ = smooth_problem()
    kernel = baselines.fit_rbf(x, y)
    wide = (1e-9, 1e9)  # it warns where it ends at a bound, and here the best constant is zero
    parts = ConstantKernel(1.0, wide) * RBF([1.0, 1.0], wide) + WhiteKernel(0.01, wide)
    search = GaussianProcessRegressor(parts, alpha=0.0, n_restarts_optimizer=3, random_state=0).fit(x, y - y.mean())
    assert kernel.log_evidence >= search.log_marginal_likelihood_value_ - 0.01


def test_rbf_gradient_is_that_of_differences():
    x, y, _ = smooth_problem(15)
    point = np.log([0.8, 2.0, 1.3, 0.4, 0.2])
    slopes = rbf._loss(point, x, y - y.mean())[1]
    numeric = approx_fprime(point, lambda p: rbf._loss(p, x, y - y.mean())[0], 1e-6)
    np.testing.assert_allclose(slopes, numeric, rtol=1e-4, atol=1e-4)


def test_rbf_hyper_parameters_of_a_part_serve_the_whole():
    x, y, new = smooth_problem(60)
    kernel = baselines.fit_rbf(x[:30], y[:30], seed=2)
    by_hand = baselines.rbf_gp(x, y, new, kernel=kernel)
    at_once = baselines.rbf_gp(x, y, new, max_hyper=30, seed=2)
    np.testing.assert_array_equal(by_hand[0], at_once[0])
    np.testing.assert_array_equal(by_hand[1], at_once[1])


def curve(amplitude, phase, n=12, seed=0):
    x = np.random.default_rng(seed).uniform(-4, 4, (n, 1))
    return x, amplitude * np.sin(x[:, 0] + phase)


def test_ablr_evidence_is_the_normal_log_density():
    phi, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    log = torch.tensor([0.3, -1.2], dtype=torch.float64)
    prior, noise = (float(v) for v in ablr._bounded(log))
    covariance = prior * (phi @ phi.T).numpy() + noise * np.eye(6)
    exact = multivariate_normal(np.zeros(6), covariance).logpdf(y.numpy())
    assert float(ablr._negative_log_evidence(phi, y, log)) == pytest.approx(-exact, rel=1e-9)


def test_ablr_learns_features_from_source_tasks_that_serve_a_new_one(generators_untouched):
    sources = [curve(2.0, phase, seed=k) for k, phase in enumerate((0.0, 1.0, 2.0, 3.0))]
    model = baselines.ABLR(sources, widths=(1, 20, 20, 10), starts=2, steps=150)
    untrained = baselines.ABLR(sources, widths=(1, 20, 20, 10), starts=1, steps=0)
    assert model.negative_log_evidence < untrained.negative_log_evidence
    x, y = curve(1.5, 0.5, seed=9)
    new = np.linspace(-3, 3, 50)[:, None]
    mean, std = model.predict(x, y, new)
    assert np.sqrt(np.mean((mean - 1.5 * np.sin(new[:, 0] + 0.5)) ** 2)) < 0.5
    assert (std > 0).all()


def test_ablr_predicts_the_posterior_of_its_head_whatever_the_targets_scale():
    model = baselines.ABLR([curve(2.0, 0.0)], widths=(1, 8, 5), starts=1, steps=20)
    x, y = curve(1.0, 1.0, seed=4)
    new = np.linspace(-3, 3, 7)[:, None]
    mean, std = model.predict(x, y, new)
    scaled_mean, scaled_std = model.predict(x, 100.0 * y, new)
    np.testing.assert_allclose(scaled_mean, 100.0 * mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scaled_std, 100.0 * std, rtol=1e-5)
