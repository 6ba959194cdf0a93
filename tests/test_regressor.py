"""`NTKRegressor` as scikit-learn's users know regressors, and the same numbers as the posterior beneath."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import nn

import jacana
from jacana import FunctionSpace, NTKRegressor, WeightSpace
from tests import oracles, zoo

DOUBLE, SINGLE = torch.float64, torch.float32


def data(c=None, n=14, seed=0, d=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = np.sin(X @ rng.normal(size=(d, c or 1))) + 0.1 * rng.normal(size=(n, c or 1))
    return X, y if c else y[:, 0]


def network(c=1, d=3, dtype=DOUBLE):
    return zoo.Case(f"regressor {d} {c}", lambda: zoo.mlp(d, 5, c), zoo.vectors(d)).net(dtype)


X, y = data()
X2, Y2 = data(c=2)
XNEW = np.random.default_rng(9).normal(size=(5, 3))


# The same numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "auto", "function", "weight", FunctionSpace(), WeightSpace()], ids=str)
@pytest.mark.parametrize("c", [None, 2])
def test_fixed_values_give_the_oracles_posterior(method, c):
    inputs, targets = data(c=c)
    net = network(c or 1)
    reg = NTKRegressor(net, prior_std=0.7, noise_std=0.2, method=method).fit(inputs, targets)
    J, J_new = (oracles.jacobian(net, torch.from_numpy(z)) for z in (inputs, XNEW))
    m, m_new = (oracles.outputs(net, torch.from_numpy(z)) for z in (inputs, XNEW))
    s = np.full(J.shape[1], 0.7)
    want = oracles.condition_on_functions(J, s, m, targets.reshape(len(targets), -1), 0.2, J_new, m_new)
    condition = np.linalg.cond((J * s**2) @ J.T + 0.04 * np.eye(len(J)))
    covariance = want.covariance + 0.04 * np.eye(len(J_new))
    mean = want.mean if c else want.mean[:, 0]
    deviation = np.sqrt(np.diag(covariance)).reshape(mean.shape)
    close = {"dtype": DOUBLE, "condition": condition, "scale": 5.0}
    oracles.assert_close(reg.predict(XNEW), mean, **close)
    got, std = reg.predict(XNEW, return_std=True)
    oracles.assert_close(got, mean, **close)
    oracles.assert_close(std, deviation, **close)
    got, cov = reg.predict(XNEW, return_cov=True)
    oracles.assert_close(got, mean, **close)
    oracles.assert_close(cov, covariance, **close)
    evidence = oracles.log_evidence(J, s, m, targets.reshape(len(targets), -1), 0.2)
    assert reg.log_marginal_likelihood_value_ == pytest.approx(evidence, rel=1e-9)
    assert reg.noise_std_ == 0.2
    assert reg.prior_std_ == 0.7


WORDS = {
    "function": FunctionSpace(),
    "weight": WeightSpace(),
    "iterative": FunctionSpace(jacana.CG()),
    "pathwise": jacana.Pathwise(),
}


@pytest.mark.parametrize(("word", "method"), WORDS.items(), ids=WORDS)
def test_a_word_is_a_method(word, method):
    by_word, by_object = (
        NTKRegressor(network(), prior_std=0.7, noise_std=0.2, method=way).fit(X, y) for way in (word, method)
    )
    # How several columns are multiplied is told by a clock, and rounds in one way or another.
    np.testing.assert_allclose(by_word.predict(XNEW), by_object.predict(XNEW), rtol=1e-12)
    for got, want in zip(by_word.predict(XNEW, True), by_object.predict(XNEW, True), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
    assert by_word.method_ == by_object.method_ == method
    assert by_word.method_reason_ == "as asked"


@pytest.mark.parametrize("method", [None, "auto"])
def test_the_method_that_was_taken_is_said_with_the_reason(method):
    few, many = (NTKRegressor(network(), prior_std=0.7, noise_std=0.2, method=method).fit(*data(n=n)) for n in (9, 40))
    assert few.method_ == few.posterior_.method == FunctionSpace()
    assert few.method_reason_.startswith("function space, factorised, for 9 observations, takes")
    assert many.method_ == WeightSpace()
    assert many.method_reason_.startswith("weight space for 26 parameters, takes")


@pytest.mark.parametrize("mean", ["network", "zero"])
def test_by_default_the_evidence_decides(mean):
    net = network()
    reg = NTKRegressor(net, mean=mean).fit(X, y)
    gp, likelihood = jacana.maximize_evidence(jacana.TangentGP(net, mean=mean), X, y)
    assert float(reg.noise_std_) == pytest.approx(float(likelihood.noise_std), rel=1e-6)
    want = gp.condition(X, y, likelihood=likelihood)
    assert reg.log_marginal_likelihood_value_ == pytest.approx(want.log_evidence, abs=1e-6)
    np.testing.assert_allclose(reg.predict(XNEW), want.predict(XNEW).mean, rtol=1e-5)
    fixed = NTKRegressor(net, mean=mean, prior_std=1.0, noise_std=1.0).fit(X, y)
    assert reg.log_marginal_likelihood_value_ > fixed.log_marginal_likelihood_value_


def test_one_prior_a_layer_and_one_noise_an_output():
    net = network(2)
    reg = NTKRegressor(net, prior_std="layers", noise_std="outputs").fit(X2, Y2)
    assert np.shape(reg.noise_std_) == (2,)
    assert set(reg.prior_std_) == {"0", "2"}
    plain = NTKRegressor(net).fit(X2, Y2)
    assert reg.log_marginal_likelihood_value_ >= plain.log_marginal_likelihood_value_ - 1e-6
    fixed = NTKRegressor(net, prior_std=reg.prior_std_, noise_std=reg.noise_std_).fit(X2, Y2)
    np.testing.assert_allclose(fixed.predict(XNEW), reg.predict(XNEW), rtol=1e-8)


def test_options_of_the_linearization_arrive():
    case = zoo.BY_NAME["output of a dataclass"]
    net = case.net()
    lin = jacana.linearize(net, parameters="head", output=zoo.logits)
    want = jacana.TangentGP(lin, prior_std=0.5).condition(X2, Y2, 0.3).predict(XNEW).mean
    reg = NTKRegressor(net, parameters="head", output=zoo.logits, prior_std=0.5, noise_std=0.3, batch_size=3).fit(
        X2, Y2
    )
    np.testing.assert_allclose(reg.predict(XNEW), want, rtol=1e-8)
    both = NTKRegressor(zoo.BY_NAME["forward="].net(), forward=zoo.split, prior_std=0.5, noise_std=0.3)
    assert both.fit(*data(c=2, d=5)).predict(np.zeros((2, 5))).shape == (2, 2)


# Shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert", [np.asarray, torch.from_numpy, lambda a: torch.from_numpy(a).float()], ids=["numpy", "torch", "float32"]
)
@pytest.mark.parametrize("c", [None, 1, 2])
def test_numpy_and_torch_in_and_numpy_float64_out(convert, c):
    inputs, targets = data(c=c)
    reg = NTKRegressor(network(c or 1, dtype=SINGLE), prior_std=1.0, noise_std=0.2).fit(
        convert(inputs), convert(targets)
    )
    shape = (5,) if c is None else (5, c)
    size = 5 * (c or 1)
    points = convert(XNEW)
    mean, std = reg.predict(points, return_std=True)
    _, cov = reg.predict(points, return_cov=True)
    samples = reg.sample_y(points, n_samples=4, random_state=0)
    for values, expected in (
        (reg.predict(points), shape),
        (mean, shape),
        (std, shape),
        (cov, (size, size)),
        (samples, (*shape, 4)),
    ):
        assert type(values) is np.ndarray
        assert values.dtype == np.float64
        assert values.shape == expected
    np.testing.assert_allclose(std.reshape(-1) ** 2, np.diag(cov), rtol=1e-6)
    assert reg.sample_y(points).shape == (*shape, 1)


def test_images_and_tokens_go_in_as_they_are():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 1, 5, 5))
    reg = NTKRegressor(zoo.BY_NAME["conv, BatchNorm, in-place ReLU"].net(SINGLE), prior_std=1.0, noise_std=0.3)
    reg.fit(images, rng.normal(size=(6, 2)))
    assert reg.predict(images[:3]).shape == (3, 2)
    assert not hasattr(reg, "n_features_in_")
    words = rng.integers(0, 5, size=(6, 4))
    tokens = NTKRegressor(zoo.BY_NAME["tied embedding and head"].net(), prior_std=1.0, noise_std=0.3)
    assert tokens.fit(words, rng.normal(size=(6, 3))).predict(words[:2]).shape == (2, 3)


def test_samples_are_of_observations():
    reg = NTKRegressor(network(), prior_std=1.0, noise_std=0.3).fit(X, y)
    samples = reg.sample_y(XNEW, n_samples=6_000, random_state=3)
    mean, covariance = reg.predict(XNEW, return_cov=True)
    oracles.assert_gaussian_samples(samples.T, mean, covariance)


def test_random_state_as_everywhere_in_scikit_learn():
    reg = NTKRegressor(network(), prior_std=1.0, noise_std=0.3).fit(X, y)
    np.testing.assert_array_equal(reg.sample_y(XNEW, 3), reg.sample_y(XNEW, 3, random_state=0))
    np.testing.assert_array_equal(reg.sample_y(XNEW, 3, random_state=7), reg.sample_y(XNEW, 3, random_state=7))
    assert not np.array_equal(reg.sample_y(XNEW, 3, random_state=7), reg.sample_y(XNEW, 3, random_state=8))
    state = np.random.RandomState(7)
    assert not np.array_equal(reg.sample_y(XNEW, 3, random_state=state), reg.sample_y(XNEW, 3, random_state=state))


def test_sampling_with_a_seed_leaves_the_global_generators_alone(generators_untouched):
    reg = NTKRegressor(network(), prior_std=1.0, noise_std=0.3).fit(X, y)
    reg.sample_y(XNEW, 3, random_state=1)
    reg.predict(XNEW, return_std=True)


# Conventions -----------------------------------------------------------------------------------------


def test_parameters_are_kept_as_given():
    net, method = network(), WeightSpace()
    options = {
        "prior_std": "layers",
        "noise_std": [0.2],
        "mean": "zero",
        "method": method,
        "parameters": ["0"],
        "output": None,
        "forward": None,
        "batch_size": 4,
    }
    reg = NTKRegressor(net, **options)
    got = reg.get_params()
    assert got.pop("net") is net
    assert all(got[key] is value for key, value in options.items())
    assert reg.set_params(noise_std=0.5, method="function") is reg
    assert reg.noise_std == 0.5
    with pytest.raises(ValueError, match="banana"):
        reg.set_params(banana=1)


def test_nothing_is_checked_before_fit(as_users_run_it):
    """scikit-learn's rule: a constructor keeps, `fit` checks."""
    NTKRegressor(None, prior_std="nonsense", noise_std=-1, method="banana")


def test_fit_changes_no_parameter_and_returns_itself():
    reg = NTKRegressor(network())
    before = reg.get_params()
    assert reg.fit(X, y) is reg
    assert all(reg.get_params()[key] is value for key, value in before.items())


def test_clone_is_unfitted_and_of_a_network_of_its_own():
    reg = NTKRegressor(network(), prior_std=0.6, noise_std=0.3, method="weight").fit(X, y)
    copy = clone(reg)
    assert copy.net is not reg.net
    assert copy.get_params()["method"] == "weight"
    with pytest.raises(NotFittedError):
        copy.predict(X)
    np.testing.assert_allclose(copy.fit(X, y).predict(XNEW), reg.predict(XNEW), rtol=1e-12)


@pytest.mark.parametrize("use", ["predict", "sample_y", "score"])
def test_before_fit_it_says_so(use):
    reg = NTKRegressor(network())
    arguments = (X, y) if use == "score" else (X,)
    with pytest.raises(NotFittedError):
        getattr(reg, use)(*arguments)
    with pytest.raises(NotFittedError):
        check_is_fitted(reg)
    check_is_fitted(reg.fit(X, y))


def test_fitted_attributes():
    reg = NTKRegressor(network())
    assert not [name for name in vars(reg) if name.endswith("_") and not name.startswith("_")]
    reg.fit(X, y)
    assert reg.n_features_in_ == 3
    assert reg.n_outputs_ == 1
    assert isinstance(reg.log_marginal_likelihood_value_, float)
    assert float(reg.noise_std_) > 0
    assert float(reg.prior_std_) > 0
    assert reg.posterior_.predict(XNEW).mean.shape == (5,)
    assert NTKRegressor(network(2)).fit(X2, Y2).n_outputs_ == 2


def test_score_is_r2():
    reg = NTKRegressor(network(), prior_std=1.0, noise_std=0.2).fit(X, y)
    new, target = data(seed=5)
    assert reg.score(new, target) == pytest.approx(r2_score(target, reg.predict(new)))
    weights = np.linspace(1, 2, len(target))
    assert reg.score(new, target, sample_weight=weights) == pytest.approx(
        r2_score(target, reg.predict(new), sample_weight=weights)
    )
    both = NTKRegressor(network(2), prior_std=1.0, noise_std=0.2).fit(X2, Y2)
    assert both.score(X2, Y2) == pytest.approx(r2_score(Y2, both.predict(X2)))


def test_score_of_tensors():
    reg = NTKRegressor(network(), prior_std=1.0, noise_std=0.2).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert reg.score(torch.from_numpy(X), torch.from_numpy(y)) == pytest.approx(reg.score(X, y))


def test_it_is_a_regressor():
    assert is_regressor(NTKRegressor(network()))
    assert "NTKRegressor" in repr(NTKRegressor(network()))


def test_grid_search_over_values_and_words():
    grid = {"noise_std": [0.05, 0.5], "method": ["function", "weight"], "prior_std": [0.3, 1.0]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = GridSearchCV(NTKRegressor(network()), grid, cv=KFold(3), error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 8
    assert search.best_estimator_.predict(XNEW).shape == (5,)
    scores = {
        tuple(p.items()): s
        for p, s in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True)
    }
    for key, score in scores.items():  # both sides are the same posterior
        other = tuple((k, "weight" if v == "function" else v) for k, v in key)
        assert score == pytest.approx(scores[other], rel=1e-6)


def test_cross_validation():
    reg = NTKRegressor(network(), prior_std=0.7, noise_std=0.2)
    assert np.isfinite(cross_val_score(reg, X, y, cv=3)).all()
    assert cross_val_predict(NTKRegressor(network(2), prior_std=0.7, noise_std=0.2), X2, Y2, cv=3).shape == Y2.shape


def test_in_a_pipeline():
    pipe = make_pipeline(StandardScaler(), NTKRegressor(network(dtype=SINGLE), prior_std=0.7, noise_std=0.2))
    scaler = StandardScaler().fit(X)
    alone = NTKRegressor(network(dtype=SINGLE), prior_std=0.7, noise_std=0.2).fit(scaler.transform(X), y)
    np.testing.assert_allclose(pipe.fit(X, y).predict(XNEW), alone.predict(scaler.transform(XNEW)), rtol=1e-5)
    mean, std = pipe.predict(XNEW, return_std=True)
    assert std.shape == mean.shape
    assert pipe.score(X, y) == pytest.approx(alone.score(scaler.transform(X), y))
    pipe.set_params(ntkregressor__noise_std=0.4)
    assert pipe.fit(X, y).named_steps["ntkregressor"].noise_std_ == 0.4


def test_fitted_again_it_forgets():
    reg = NTKRegressor(network(2), prior_std=0.7, noise_std=0.2).fit(*data(c=2, seed=4))
    reg.fit(X2, Y2)
    fresh = NTKRegressor(network(2), prior_std=0.7, noise_std=0.2).fit(X2, Y2)
    np.testing.assert_array_equal(reg.predict(XNEW), fresh.predict(XNEW))
    one = NTKRegressor(zoo.BY_NAME["conv, BatchNorm, in-place ReLU"].net(), prior_std=1.0, noise_std=0.3)
    one.set_params(net=network(2)).fit(X2, Y2)
    assert one.n_features_in_ == 3


def test_features_fitted_once_are_forgotten_by_images():
    reg = NTKRegressor(network(2), prior_std=0.7, noise_std=0.2).fit(X2, Y2)
    rng = np.random.default_rng(0)
    reg.set_params(net=zoo.BY_NAME["conv, BatchNorm, in-place ReLU"].net()).fit(rng.normal(size=(4, 1, 5, 5)), Y2[:4])
    assert not hasattr(reg, "n_features_in_")


def test_a_failed_fit_leaves_the_earlier_one():
    reg = NTKRegressor(network(), prior_std=0.7, noise_std=0.2).fit(X, y)
    before = reg.predict(XNEW)
    spoiled = y.copy()
    spoiled[3] = np.nan
    with pytest.raises(jacana.errors.JacanaError):
        reg.fit(X, spoiled)
    np.testing.assert_array_equal(reg.predict(XNEW), before)


def test_unfitted_it_pickles():
    reg = NTKRegressor(network(), noise_std=0.3, prior_std=0.7, method=WeightSpace())
    again = pickle.loads(pickle.dumps(reg))
    np.testing.assert_array_equal(again.fit(X, y).predict(XNEW), reg.fit(X, y).predict(XNEW))


def test_the_network_is_snapshotted_at_fit():
    net = network()
    reg = NTKRegressor(net, prior_std=0.7, noise_std=0.2).fit(X, y)
    before = reg.predict(XNEW)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(reg.predict(XNEW), before)


def test_arrays_are_left_as_they_were():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 1)).double()
    inputs, targets, points = X.copy(), y.copy(), XNEW.copy()
    reg = NTKRegressor(net).fit(inputs, targets)
    reg.predict(points, return_std=True), reg.sample_y(points), reg.score(inputs, targets)
    np.testing.assert_array_equal(inputs, X)
    np.testing.assert_array_equal(targets, y)
    np.testing.assert_array_equal(points, XNEW)


def test_read_only_arrays_as_parallel_workers_get_them():
    inputs, targets = X.copy(), y.copy()
    inputs.flags.writeable = targets.flags.writeable = False
    reg = NTKRegressor(network(), prior_std=0.7, noise_std=0.2).fit(inputs, targets)
    assert np.isfinite(reg.predict(inputs)).all()
