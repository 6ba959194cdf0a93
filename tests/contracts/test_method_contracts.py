"""Laws over every method of inference: each concrete class in `jacana.posteriors` that `condition` takes.

Found by looking: a new exact method that needs no argument is held to them the day it is written.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil

import numpy as np
import pytest
import torch

import jacana
import jacana.posteriors
from tests import oracles
from tests.problems import Problem, problem

DOUBLE = torch.float64


def methods() -> list[type]:
    """Every concrete descendant of what `FunctionSpace` and `WeightSpace` have in common."""
    for module in pkgutil.walk_packages(jacana.posteriors.__path__, "jacana.posteriors."):
        importlib.import_module(module.name)
    shared = [
        k for k in jacana.FunctionSpace.__mro__ if k in jacana.WeightSpace.__mro__ and k.__module__.startswith("jacana")
    ]
    assert shared, "the methods share no class of the package"
    found, waiting = [], list(shared)
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if not inspect.isabstract(kind) and kind.__module__.startswith("jacana") and kind not in found:
            found.append(kind)
    return found


EVERY = pytest.mark.parametrize("method", methods(), ids=lambda kind: kind.__name__)
EXACT = pytest.mark.parametrize("method", [kind for kind in methods() if kind.exact], ids=lambda kind: kind.__name__)
NAMES = ["p < nc, c = 2", "p > nc, c = 2", "one noise an output", "n = 1, c = 1", "a prior each layer", "mean zero"]


def refusal(method: jacana.posteriors.Method, likelihood: jacana.Likelihood) -> str:
    """What a method says against a likelihood; nothing where it takes it."""
    try:
        method.check(likelihood)
    except jacana.errors.InvalidOption as error:
        return str(error)
    return ""


def condition(it: Problem, method: jacana.posteriors.Method) -> jacana.Posterior:
    """On the targets, or on labels where a method is for these alone."""
    if refusal(method, jacana.Gaussian(it.noise_argument)):
        return it.gp.condition(it.x, it.labels, likelihood=jacana.Categorical(), method=method)
    return it.gp.condition(it.x, it.y, it.noise_argument, method=method)


def test_the_search_finds_the_methods_there_are():
    assert {jacana.FunctionSpace, jacana.WeightSpace} <= set(methods())


@EVERY
def test_options_are_a_frozen_value(method):
    assert dataclasses.is_dataclass(method)
    one, two = method(), method()
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    for field in dataclasses.fields(one):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field.name, None)


@EVERY
def test_it_takes_a_likelihood_or_says_that_it_does_not(method):
    likelihoods = jacana.Gaussian(0.3), jacana.Categorical()
    said = [refusal(method(), likelihood) for likelihood in likelihoods]
    assert "" in said
    assert not (method.exact and said[0])
    for likelihood, words in zip(likelihoods, said, strict=True):
        assert not words or (method.__name__ in words and type(likelihood).__name__ in words and "take" in words)


@EXACT
@pytest.mark.parametrize("name", NAMES)
def test_its_posterior_is_the_oracles(method, name, dtype):
    it = problem(name, dtype)
    post = it.condition_on_data(method())
    prediction = post.predict(it.x_new)
    scale = np.abs(it.K_new).max()
    it.close(prediction.mean, it.shaped(it.posterior.mean), "mean", scale=it.size)
    it.close(prediction.covariance, it.posterior.covariance, "covariance", scale=scale)
    it.close(prediction.variance, it.shaped(it.posterior.variance), "variance", scale=scale)
    it.close(post.weights, it.weights.mean[:, 0], "weights")
    it.close(post.log_evidence, it.log_evidence, "log evidence", scale=max(abs(it.log_evidence), it.n * it.c))


@EXACT
@pytest.mark.parametrize("name", NAMES)
def test_data_never_add_variance(method, name):
    it = problem(name)
    lost = it.gp.predict(it.x_new).covariance - it.condition_on_data(method()).predict(it.x_new).covariance
    assert torch.linalg.eigvalsh((lost + lost.T) / 2).min() >= -1e-10 * np.abs(it.K_new).max()


@EXACT
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_affine_in_the_targets(method, name):
    it = problem(name)
    other = torch.randn(it.y.shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)

    def mean(y):
        return it.gp.condition(it.x, y, it.noise_argument, method=method()).predict(it.x_new).mean

    halfway = mean(0.25 * it.y + 0.75 * other)
    it.close(halfway, 0.25 * mean(it.y) + 0.75 * mean(other), "mean", scale=it.size)


@EVERY
def test_the_mean_is_that_of_the_weights(method):
    """J* δ̂ and nothing else: what is predicted is a network with other weights, to first order where its tangent is."""
    it = problem("p > nc, c = 2")
    post = condition(it, method())
    m, J, step, model = it.m_new, it.J_new, post.weights, post.observations.model
    if model.origin is not None:  # the tangent was made elsewhere
        there = model.lin.network.module
        m, J, step = oracles.outputs(there, it.x_new), oracles.jacobian(there, it.x_new), step - model.origin
    want = m + (J @ step.numpy()).reshape(m.shape)
    oracles.assert_close(post.predict(it.x_new).mean, want, DOUBLE, scale=it.size)


@EXACT
def test_it_is_kept_when_more_data_come(method):
    it = problem("p > nc, c = 2")
    post = it.gp.condition(it.x[:2], it.y[:2], 0.3, method=method()).condition(it.x[2:], it.y[2:])
    assert post.method == method()
    it.close(post.predict(it.x_new).covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())


def asked(ask):
    """What is said, or nothing where a method has none of it."""
    try:
        return ask()
    except jacana.errors.InvalidOption:
        return None


@EVERY
def test_it_is_the_same_every_time(method, generators_untouched):
    it = problem("p > nc, c = 2")
    one, two = (condition(it, method()) for _ in range(2))
    assert torch.equal(one.weights, two.weights)
    covariances = [asked(lambda post=post: post.predict(it.x_new).covariance) for post in (one, two)]
    evidences = [asked(lambda post=post: post.log_evidence) for post in (one, two)]
    if method in (jacana.MAP, jacana.StochasticMAP):  # a point
        assert covariances == evidences == [None, None]
    else:
        assert torch.equal(*covariances)
        assert evidences[0] is not None
        assert evidences[0] == evidences[1]
