"""Laws over every likelihood there is: each concrete class of `jacana.likelihoods`, found by looking."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil

import numpy as np
import pytest
import torch

import jacana
import jacana.likelihoods
from tests import oracles

DOUBLE = torch.float64

TRIALS = {
    "categorical": (jacana.Categorical(), 3, oracles.categorical),
    "Bernoulli": (jacana.Bernoulli(), 1, oracles.bernoulli),
    "many labels": (jacana.Bernoulli(), 3, oracles.bernoulli),
    "Poisson": (jacana.Poisson(), 1, oracles.poisson),
    "two rates": (jacana.Poisson(), 2, oracles.poisson),
    "Gaussian": (jacana.Gaussian(0.5), 2, oracles.gaussian(np.array([0.5, 0.5]))),
    "Gaussian, by output": (jacana.Gaussian([0.5, 2.0]), 2, oracles.gaussian(np.array([0.5, 2.0]))),
    "heteroscedastic": (jacana.HeteroscedasticGaussian(), 2, oracles.heteroscedastic),
    "heteroscedastic, two": (jacana.HeteroscedasticGaussian(), 4, oracles.heteroscedastic),
}
LIKELIHOODS = pytest.mark.parametrize(("likelihood", "c", "outcomes"), TRIALS.values(), ids=TRIALS)


def values(c, n=4):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(c), dtype=DOUBLE)


def drawn(likelihood, f, outcomes):
    """One possible y for each example."""
    rng = np.random.default_rng(0)
    picked = []
    for row in f.numpy():
        options = outcomes(row)
        weights = np.array([weight for _, weight in options])
        picked.append(options[rng.choice(len(options), p=weights / weights.sum())][0])
    return likelihood.targets(np.stack(picked), *f.shape)


def concrete(kind):
    found = set() if inspect.isabstract(kind) else {kind}
    return found.union(*(concrete(child) for child in kind.__subclasses__()))


def test_every_likelihood_is_on_trial():
    for module in pkgutil.walk_packages(jacana.likelihoods.__path__, "jacana.likelihoods."):
        importlib.import_module(module.name)
    ours = {kind for kind in concrete(jacana.Likelihood) if kind.__module__.startswith("jacana.")}
    assert ours == {type(likelihood) for likelihood, _, _ in TRIALS.values()}
    assert all(getattr(jacana, kind.__name__) is kind for kind in ours)


@LIKELIHOODS
def test_probabilities_sum_to_one_or_are_those_of_the_density(likelihood, c, outcomes):
    f = values(c, 1)
    options = outcomes(f[0].numpy())
    y = likelihood.targets(np.stack([y for y, _ in options]), len(options), c)
    log_prob = likelihood.log_prob(f.expand(len(options), c), y)
    if isinstance(likelihood, jacana.Gaussian | jacana.HeteroscedasticGaussian):
        d = y.shape[1]
        std = (0.5 * f[:, d:]).exp() if c > d else likelihood.noise_std.expand(d)
        want = torch.distributions.Normal(f[:, :d], std).log_prob(y).sum(1)
    else:
        want = torch.tensor([weight for _, weight in options], dtype=DOUBLE).log()
    plausible = want > -60  # beyond, the oracle's own masses have no digits
    oracles.assert_close(log_prob[plausible], want[plausible], DOUBLE, scale=60)


@LIKELIHOODS
def test_gradient_is_that_of_the_log_probability(likelihood, c, outcomes):
    f = values(c).requires_grad_()
    y = drawn(likelihood, f.detach(), outcomes)
    (want,) = torch.autograd.grad(likelihood.log_prob(f, y).sum(), f)
    oracles.assert_close(likelihood.gradient(f.detach(), y), want, DOUBLE, scale=10)


@LIKELIHOODS
def test_curvature_is_the_expected_square_of_the_gradient(likelihood, c, outcomes):
    f = values(c)
    want = []
    for row in f:
        options = outcomes(row.numpy())
        y = likelihood.targets(np.stack([y for y, _ in options]), len(options), c)
        scores = likelihood.gradient(row.expand(len(options), c), y).numpy()
        want.append((scores.T * np.array([weight for _, weight in options])) @ scores)
    oracles.assert_close(likelihood.curvature(f), np.stack(want), DOUBLE, factor=1e4)


@LIKELIHOODS
def test_curvature_is_the_expected_curvature(likelihood, c, outcomes):
    f = values(c, 1)[0]
    total = torch.zeros(c, c, dtype=DOUBLE)
    options = sorted(outcomes(f.numpy()), key=lambda pair: -pair[1])[:400]
    for y, weight in options:
        target = likelihood.targets(y[None], 1, c)
        total -= weight * torch.autograd.functional.hessian(
            lambda g, target=target: likelihood.log_prob(g[None], target).sum(), f
        )
    oracles.assert_close(likelihood.curvature(f[None])[0], total, DOUBLE, factor=1e7)


@LIKELIHOODS
def test_root_and_product_are_those_of_the_curvature(likelihood, c, outcomes, dtype):
    f = values(c).to(dtype)
    H = likelihood.curvature(f)
    V = torch.randn(4, c, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).to(dtype)
    assert H.dtype == likelihood.curvature_times(f, V).dtype == likelihood.curvature_root(f).dtype == dtype
    oracles.assert_close(likelihood.curvature_times(f, V), H @ V, dtype, scale=100)
    general = jacana.Likelihood.curvature_times(likelihood, f, V)
    oracles.assert_close(general, H @ V, dtype, scale=100)
    for root in (likelihood.curvature_root(f), jacana.Likelihood.curvature_root(likelihood, f)):
        oracles.assert_close(root @ root.mT, H, dtype, scale=10)


@LIKELIHOODS
def test_targets_are_checked(likelihood, c, outcomes):
    for wrong in ("text", [[[1.0]]], np.full((4, c), np.nan), np.ones((3, c + 1)), [1 + 1j] * 4, None):
        with pytest.raises(jacana.errors.InvalidData, match="y"):
            likelihood.targets(wrong, 4, c)


@LIKELIHOODS
def test_a_part_is_the_likelihood_of_these_examples(likelihood, c, outcomes):
    f = values(c)
    oracles.assert_close(likelihood.part(1, 3).curvature(f[1:3]), likelihood.curvature(f)[1:3], DOUBLE)


def test_noise_of_each_observation_goes_with_its_example():
    noise = torch.linspace(0.5, 2, 8, dtype=DOUBLE).view(4, 2)
    likelihood, f = jacana.Gaussian(noise), values(2)
    oracles.assert_close(likelihood.part(1, 3).curvature(f[1:3]), likelihood.curvature(f)[1:3], DOUBLE)
    oracles.assert_close(likelihood.curvature(f).diagonal(dim1=1, dim2=2), noise**-2, DOUBLE)


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (jacana.Categorical(), [0, 1, 3]),
        (jacana.Categorical(), [0, -1, 1]),
        (jacana.Categorical(), [0.5, 1.0, 0.0]),
        (jacana.Bernoulli(), [[0, 1, 2]] * 3),
        (jacana.Bernoulli(), [[0, 1, 0.5]] * 3),
        (jacana.Poisson(), [[0, -1, 2]] * 3),
        (jacana.Poisson(), [[0, 1.5, 2]] * 3),
    ],
)
def test_targets_that_cannot_be_are_refused(likelihood, y):
    with pytest.raises(jacana.errors.InvalidData, match="expected"):
        likelihood.targets(y, 3, 3)


@pytest.mark.parametrize(("likelihood", "c"), [(jacana.Categorical(), 1), (jacana.HeteroscedasticGaussian(), 3)])
def test_outputs_that_do_not_fit_are_refused(likelihood, c):
    with pytest.raises(jacana.errors.InvalidOption, match="output"):
        likelihood.check(4, c)


def test_a_curvature_that_is_not_positive_is_refused():
    class Wrong(jacana.Likelihood):
        def log_prob(self, f, y):
            return f.sum(1)

        def gradient(self, f, y):
            return torch.ones_like(f)

        def curvature(self, f):
            return -torch.eye(f.shape[1]).expand(len(f), -1, -1)

    with pytest.raises(jacana.errors.InvalidOption, match="negative"):
        Wrong().curvature_root(torch.zeros(2, 3))


def test_no_noise_has_no_density():
    with pytest.raises(jacana.errors.InvalidOption, match="zero"):
        jacana.Gaussian(0.0).curvature(torch.zeros(2, 1))


@pytest.mark.parametrize("gap", [8.0, 14.0, 20.0, 40.0])
def test_confident_outputs_keep_their_digits(gap):
    """1 − π in single precision, where π is almost one."""
    f = torch.zeros(1, 4, dtype=DOUBLE)
    f[0, 1] = gap
    v = torch.linspace(-1, 1, 4, dtype=DOUBLE).view(1, 4, 1)
    rest = 3.0 * math.exp(-gap) / (1.0 + 3.0 * math.exp(-gap))
    each = rest / 3.0
    pi = torch.full((4,), each, dtype=DOUBLE)
    pi[1] = 1.0 - rest
    want = torch.diag(pi * (1.0 - pi)) - (torch.outer(pi, pi) - torch.diag(pi * pi))
    want[1, 1] = (1.0 - rest) * rest
    likelihood, low = jacana.Categorical(), f.float()
    for got, exact in (
        (likelihood.curvature(low)[0], want),
        (likelihood.curvature_times(low, v.float())[0, :, 0], want @ v[0, :, 0]),
        (likelihood.curvature_root(low)[0] @ likelihood.curvature_root(low)[0].T, want),
        (likelihood.gradient(low, torch.tensor([1]))[0], torch.tensor([-each, rest, -each, -each])),
        (jacana.Bernoulli().gradient(low[:, 1:2], torch.ones(1, 1))[0], torch.tensor([1.0 / (1.0 + math.exp(gap))])),
    ):
        assert float((got.double() - exact).abs().max()) < 1e-5 * float(exact.abs().max())
