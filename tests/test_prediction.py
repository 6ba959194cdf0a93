"""Predictions: latent and observed, shapes, intervals, laziness; samples with their false-alarm rate."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import jacana
from jacana import FunctionSpace, WeightSpace
from tests import oracles, problems, zoo
from tests.problems import problem

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64
METHODS = {"function space": FunctionSpace(), "weight space": WeightSpace()}
PROBLEMS = pytest.mark.parametrize("name", problems.BY_NAME)
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)

# Each statistical test below raises a false alarm at one seed in a million, and its seeds are fixed.
FALSE_ALARM = 1e-6
SAMPLES = 6_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Shapes ----------------------------------------------------------------------------------------------


@PROBLEMS
@BOTH
def test_shapes_and_dtypes(name, method, dtype):
    it = problem(name, dtype)
    post, m, c = it.condition_on_data(method), it.spec.m, it.c
    shape = (m,) if it.spec.flat else (m, c)
    observable = np.ndim(it.noise_std) < 2
    for observed in (False, True) if observable else (False,):
        prediction = post.predict(it.x_new, observed=observed)
        assert prediction.observed is observed
        for values in (prediction.mean, prediction.variance, prediction.std, *prediction.interval(0.9)):
            assert values.shape == shape
            assert values.dtype == DOUBLE
            assert not values.requires_grad
        assert prediction.covariance.shape == (m * c, m * c)
        assert prediction.sample(5, generator=generator()).shape == (5, *shape)
        assert prediction.sample(1, generator=generator()).shape == (1, *shape)
    assert post.weights.shape == (it.p,)
    assert post.sample_weights(4, generator=generator()).shape == (it.p, 4)


def test_a_prior_has_the_shape_that_the_network_returns():
    x = torch.randn(3, 3, dtype=DOUBLE)
    flat = jacana.TangentGP(zoo.Flat().double()).predict(x)
    column = jacana.TangentGP(zoo.mlp(3, 4, 1).double()).predict(x)
    assert flat.mean.shape == flat.variance.shape == (3,)
    assert column.mean.shape == column.variance.shape == (3, 1)
    assert flat.sample(2, generator=generator()).shape == (2, 3)
    assert column.sample(2, generator=generator()).shape == (2, 3, 1)


@pytest.mark.parametrize("make", [zoo.Flat, lambda: zoo.mlp(3, 4, 1)], ids=["returns (n,)", "returns (n, 1)"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)], ids=["y (n,)", "y (n, 1)"])
def test_one_output_comes_back_as_the_targets_were(make, shape):
    net = make().double()
    x, y = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, dtype=DOUBLE)
    want = jacana.TangentGP(net).condition(x, y[:, None], 0.3).predict(x).mean[:, 0]
    post = jacana.TangentGP(net).condition(x, y.reshape(shape), 0.3)
    assert post.predict(x).mean.shape == shape
    assert post.predict(x).variance.shape == shape
    assert post.leave_one_out().mean.shape == shape
    oracles.assert_close(post.predict(x).mean.reshape(-1), want, DOUBLE, condition=1e3)


# Latent and observed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [s.name for s in problems.SPECS if np.ndim(s.noise_std) < 2])
@BOTH
def test_latent_and_observed_differ_by_the_noise(name, method, dtype):
    it = problem(name, dtype)
    post = it.condition_on_data(method)
    latent, observed = post.predict(it.x_new), post.predict(it.x_new, observed=True)
    noise = oracles.noise_matrix(it.noise_std, it.spec.m, it.c)
    oracles.assert_close(observed.mean, latent.mean, DOUBLE)
    scale = max(np.abs(it.K_new).max(), noise.max())
    oracles.assert_close(observed.covariance - latent.covariance, noise, DOUBLE, scale=scale)
    extra = it.shaped(np.diag(noise).reshape(it.spec.m, it.c))
    oracles.assert_close(observed.variance - latent.variance, extra, DOUBLE, scale=scale)


@BOTH
def test_what_was_asked_of_one_prediction_does_not_change_another(method):
    it = problem("p > nc, c = 2")
    post = it.condition_on_data(method)
    latent = post.predict(it.x_new)
    first = latent.variance.clone()
    observed = post.predict(it.x_new, observed=True)
    observed.variance, observed.covariance, observed.sample(3, generator=generator())
    assert torch.equal(latent.variance, first)
    assert torch.equal(post.predict(it.x_new).variance, first)


@PROBLEMS
@BOTH
def test_variance_is_the_diagonal_of_the_covariance(name, method, dtype):
    it = problem(name, dtype)
    prediction = it.condition_on_data(method).predict(it.x_new)
    other = it.condition_on_data(method).predict(it.x_new)  # asked for the other one first
    diagonal = other.covariance.diagonal().reshape(prediction.variance.shape)
    it.close(prediction.variance, diagonal, "variance", scale=np.abs(it.K_new).max())


def test_a_prediction_holds_its_own_points():
    it = problem("p > nc, c = 2")
    x = it.x_new.clone()
    prediction = it.condition_on_data().predict(x)
    x.fill_(5.0)
    it.close(prediction.mean, it.posterior.mean, "mean", scale=it.size)
    it.close(prediction.covariance, it.posterior.covariance, "covariance", scale=np.abs(it.K_new).max())


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("observed", [False, True])
def test_intervals_hold_their_mass(level, observed):
    it = problem("one noise an output")
    prediction = it.condition_on_data().predict(it.x_new, observed=observed)
    lower, upper = prediction.interval(level)
    mass = scipy.stats.norm.cdf(upper, prediction.mean, prediction.std) - scipy.stats.norm.cdf(
        lower, prediction.mean, prediction.std
    )
    np.testing.assert_allclose(mass, level, atol=1e-12)
    oracles.assert_close((lower + upper) / 2, prediction.mean, DOUBLE)
    default = prediction.interval()
    torch.testing.assert_close(default[0], prediction.interval(0.95)[0], rtol=0, atol=0)


class Counting(torch.autograd.Function):
    """Counts what goes forward and what goes backward through it."""

    calls: ClassVar[list[str]] = []

    @staticmethod
    def forward(x):
        Counting.calls.append("forward")
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        Counting.calls.append("backward")
        return gradient.clone()

    @staticmethod
    def jvp(ctx, tangent):
        Counting.calls.append("tangent")
        return tangent.clone()


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(Counting.apply(torch.tanh(self.first(x))))


@BOTH
def test_a_mean_costs_one_product_whatever_the_number_of_examples(method):
    """No pass over the data learned from, nothing for each output: the same passes for 4 examples as for 40."""
    counts = []
    for n in (4, 40):
        net = Counted().double()
        post = jacana.TangentGP(net).condition(
            torch.randn(n, 2).double(), torch.randn(n, 3).double(), 0.3, method=method
        )
        post.predict(torch.randn(5, 2).double()).mean  # noqa: B018
        Counting.calls.clear()
        post.predict(torch.randn(5, 2).double()).mean  # noqa: B018
        counts.append(list(Counting.calls))
    assert counts[0] == counts[1]
    assert counts[0].count("backward") <= 2
    assert counts[0].count("forward") <= 4


# Samples ---------------------------------------------------------------------------------------------


def flat_samples(prediction, count=SAMPLES, seed=0):
    return prediction.sample(count, generator=generator(seed)).reshape(count, -1)


SAMPLED = ["p < nc, c = 2", "p > nc, c = 2", "p > n, y (n,)", "one noise an output", "a prior each layer", "mean zero"]


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("observed", [False, True])
@BOTH
def test_samples_have_the_posterior_mean_and_covariance(name, observed, method):
    """Three tests on 6,000 samples, with one false alarm in a million."""
    it = problem(name)
    samples = flat_samples(it.condition_on_data(method).predict(it.x_new, observed=observed))
    covariance = it.posterior.covariance
    if observed:
        covariance = covariance + oracles.noise_matrix(it.noise_std, it.spec.m, it.c)
    oracles.assert_gaussian_samples(samples, it.posterior.mean, covariance, false_alarm=FALSE_ALARM)


@pytest.mark.parametrize("name", ["p > nc, c = 2", "p > n, y (n,)"])
def test_samples_of_the_prior(name):
    it = problem(name)
    samples = flat_samples(it.gp.predict(it.x_new))
    oracles.assert_gaussian_samples(samples, it.m_new, it.K_new, false_alarm=FALSE_ALARM)


@pytest.mark.parametrize("name", ["p < nc, c = 2", "p < n, y (n,)", "p > nc, c = 2", "a prior each layer"])
@BOTH
def test_samples_of_the_weights(name, method):
    """Each is a whole network: as many coordinates as weights, with their covariances."""
    it = problem(name)
    samples = it.condition_on_data(method).sample_weights(SAMPLES, generator=generator(1)).T
    assert samples.dtype == DOUBLE
    oracles.assert_gaussian_samples(samples, it.weights.mean, it.weights.covariance, false_alarm=FALSE_ALARM)


@BOTH
def test_samples_where_the_covariance_is_singular(method):
    """More points than weights, one of them twice: every sample is a function, with one value at one point."""
    it = problem("p < nc, c = 2")
    x = torch.cat([it.x_new, it.x_new[:1], it.x])
    samples = it.condition_on_data(method).predict(x).sample(2000, generator=generator())
    assert torch.isfinite(samples).all()
    spread = samples.std()
    assert (samples[:, 0] - samples[:, it.spec.m]).abs().max() <= 1e-5 * spread
    few = samples[:, : it.spec.m].reshape(2000, -1)
    oracles.assert_gaussian_samples(few, it.posterior.mean, it.posterior.covariance, false_alarm=FALSE_ALARM)


@pytest.mark.parametrize("what", ["latent", "observed", "prior", "weights"])
@BOTH
def test_generators_decide_and_nothing_else(what, method, generators_untouched):
    it = problem("p > nc, c = 2")
    post = it.condition_on_data(method)

    def draw(g):
        if what == "weights":
            return post.sample_weights(3, generator=g)
        if what == "prior":
            return it.gp.predict(it.x_new).sample(3, generator=g)
        return post.predict(it.x_new, observed=what == "observed").sample(3, generator=g)

    assert torch.equal(draw(generator(5)), draw(generator(5)))
    assert not torch.equal(draw(generator(5)), draw(generator(6)))
    one = generator(5)
    assert not torch.equal(draw(one), draw(one))


def test_without_a_generator_the_global_one_is_used():
    it = problem("p > nc, c = 2")
    prediction = it.condition_on_data().predict(it.x_new)
    torch.manual_seed(3)
    one = prediction.sample(2)
    torch.manual_seed(3)
    assert torch.equal(prediction.sample(2), one)
    assert not torch.equal(prediction.sample(2), one)


@BOTH
def test_samples_are_different_from_one_another(method):
    it = problem("p > nc, c = 2")
    samples = it.condition_on_data(method).predict(it.x_new).sample(50, generator=generator()).reshape(50, -1)
    distances = torch.cdist(samples, samples) + torch.eye(50, dtype=DOUBLE)
    assert distances.min() > 1e-3


def test_a_sampled_weight_vector_is_a_sampled_function():
    it = problem("p > nc, c = 2")
    weights = it.condition_on_data().sample_weights(SAMPLES, generator=generator(2)).numpy()
    functions = it.m_new.reshape(-1, 1) + it.J_new @ weights
    oracles.assert_gaussian_samples(functions.T, it.posterior.mean, it.posterior.covariance, false_alarm=FALSE_ALARM)
