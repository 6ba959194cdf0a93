"""Laws over every likelihood there is: each concrete class of `jacana.likelihoods`, found by looking."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil

import numpy as np
import pytest
import scipy.stats
import torch

import jacana
import jacana.likelihoods
from jacana.linearization import Prior, Products
from jacana.operators import WhitenedFisher
from jacana.predictive import mutual_information
from tests import oracles

DOUBLE = torch.float64

# Each statistical test below raises a false alarm at one seed in a million, and its seeds are fixed.
FALSE_ALARM = 1e-6
SAMPLES = 20_000

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
    "tempered": (jacana.Tempered(jacana.Categorical(), 3.0), 3, oracles.categorical),
    "tempered counts": (jacana.Tempered(jacana.Poisson(), 0.5), 2, oracles.poisson),
    "weighted": (jacana.Weighted(jacana.Categorical(), [0.5, 2.0, 1.0, 3.0]), 3, oracles.categorical),
    "weighted Gaussian": (
        jacana.Weighted(jacana.Gaussian([[0.5, 2.0]] * 4), torch.tensor([1.5, 2.0, 1.0, 0.25])),
        2,
        oracles.gaussian(np.array([0.5, 2.0])),
    ),
}
LIKELIHOODS = pytest.mark.parametrize(("likelihood", "c", "outcomes"), TRIALS.values(), ids=TRIALS)


def values(c, n=4):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(c), dtype=DOUBLE)


def weights(likelihood, n=4):
    return getattr(likelihood, "weights", getattr(likelihood, "power", 1.0) * torch.ones(n, dtype=DOUBLE))


def plain(likelihood):
    """Without weights."""
    return getattr(likelihood, "likelihood", likelihood)


def repeated(likelihood, i, count):
    """The likelihood of example i, several times."""
    return likelihood.at(torch.full((count,), i))


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
    log_prob = repeated(likelihood, 0, len(options)).log_prob(f.expand(len(options), c), y) / weights(likelihood)[0]
    if isinstance(plain(likelihood), jacana.Gaussian | jacana.HeteroscedasticGaussian):
        d = y.shape[1]
        std = (0.5 * f[:, d:]).exp() if c > d else plain(likelihood.part(0, 1)).noise_std.expand(1, d)
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
def test_the_saturated_model_is_the_best_there_is(likelihood, c, outcomes):
    y = drawn(likelihood, values(c), outcomes)
    most = likelihood.saturated(y)
    assert most.dtype == DOUBLE
    if isinstance(plain(likelihood), jacana.HeteroscedasticGaussian):  # a variance of zero
        assert bool((most == math.inf).all())
        return
    assert bool((likelihood.log_prob(values(c), y) < most).all())
    f = torch.zeros(4, c, dtype=DOUBLE)
    for step in range(100):  # of Newton's method, cut, for the best f may be infinite
        damped = likelihood.curvature(f) + (1e-9 + 0.5**step) * torch.eye(c, dtype=DOUBLE)
        f = f + torch.linalg.solve(damped, likelihood.gradient(f, y)).clamp(-0.5, 0.5)
    missing = most - likelihood.log_prob(f, y)
    assert float(missing.min()) > -1e-12
    assert float(missing.max()) < 1e-6


def test_what_weighs_nothing_has_nothing_to_gain():
    """Also where nobody knows how much that would be."""

    class Own(jacana.Likelihood):
        def log_prob(self, f, y):
            return f.sum(1)

        def gradient(self, f, y):
            return torch.ones_like(f)

        def curvature(self, f):
            return torch.zeros(len(f), f.shape[1], f.shape[1])

    y = torch.zeros(2, 1, dtype=DOUBLE)
    assert Own().saturated(y).tolist() == [math.inf, math.inf]
    assert jacana.Weighted(Own(), [0.0, 2.0]).saturated(y).tolist() == [0.0, math.inf]


@LIKELIHOODS
def test_curvature_is_the_expected_square_of_the_gradient(likelihood, c, outcomes):
    f = values(c)
    want = []
    for i, row in enumerate(f):
        options = outcomes(row.numpy())
        y = likelihood.targets(np.stack([y for y, _ in options]), len(options), c)
        scores = repeated(likelihood, i, len(options)).gradient(row.expand(len(options), c), y).numpy()
        square = (scores.T * np.array([weight for _, weight in options])) @ scores
        want.append(square / float(weights(likelihood)[i]))
    oracles.assert_close(likelihood.curvature(f), np.stack(want), DOUBLE, factor=1e4)


@LIKELIHOODS
def test_curvature_is_the_expected_curvature(likelihood, c, outcomes):
    f = values(c, 1)[0]
    total = torch.zeros(c, c, dtype=DOUBLE)
    options = sorted(outcomes(f.numpy()), key=lambda pair: -pair[1])[:400]
    for y, weight in options:
        target = likelihood.targets(y[None], 1, c)
        total -= weight * torch.autograd.functional.hessian(
            lambda g, target=target: likelihood.part(0, 1).log_prob(g[None], target).sum(), f
        )
    oracles.assert_close(likelihood.part(0, 1).curvature(f[None])[0], total, DOUBLE, factor=1e7)


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


# A root of rank c − 1 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [2, 3, 7])
def test_the_categorical_root_has_a_column_less_than_classes(c):
    f = torch.cat([values(c, 6), 30.0 * torch.eye(c, dtype=DOUBLE), torch.zeros(1, c, dtype=DOUBLE)])
    pi = torch.softmax(f, 1).numpy()
    H = np.stack([np.diag(p) - np.outer(p, p) for p in pi])
    R = jacana.Categorical().curvature_root(f)
    assert R.shape == (len(f), c, c - 1)
    oracles.assert_close(R @ R.mT, H, DOUBLE)
    # Each is a basis: as many singular values as columns that are not zero.
    assert bool((torch.linalg.svdvals(R)[:, -1] > 1e-8).all())


def test_what_takes_roots_takes_one_with_fewer_columns_than_outputs():
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    x = torch.randn(5, 2, dtype=DOUBLE)
    J = oracles.jacobian(net, x)
    f = oracles.outputs(net, x)
    want = oracles.gauss_newton(J, oracles.curvature("categorical", f))
    likelihood = jacana.Categorical()
    oracles.assert_close(jacana.Fisher(net, x, likelihood, batch_size=2).diagonal(), np.diag(want), DOUBLE)
    lin = jacana.linearize(net)
    whitened = WhitenedFisher(
        Products(lin, x), Prior.of(lin.network, 1.0), likelihood.curvature_root(torch.from_numpy(f))
    )
    oracles.assert_close(whitened.diagonal(), np.diag(want), DOUBLE)
    root = whitened.root(torch.arange(5))
    assert root.shape == (10, J.shape[1])
    R = root.times(torch.eye(J.shape[1], dtype=DOUBLE))
    oracles.assert_close(R.T @ R, want, DOUBLE)
    oracles.assert_close(root.transposed_times(torch.eye(10, dtype=DOUBLE)), R.T, DOUBLE)
    oracles.assert_close(root.gram(), R @ R.T, DOUBLE)


# New observations ---------------------------------------------------------------------------------------


def indicators(options, c):
    """Outcomes with labels written as one of c."""
    return [(np.eye(c)[int(y)] if np.ndim(y) == 0 else y, weight) for y, weight in options]


def first_two(pairs):
    """Mean and variance of each entry of y under weights."""
    y, weight = np.stack([y for y, _ in pairs]), np.array([weight for _, weight in pairs])[:, None]
    mean = (weight * y).sum(0)
    return mean, (weight * (y - mean) ** 2).sum(0)


@LIKELIHOODS
def test_conditional_moments_are_those_of_the_outcomes(likelihood, c, outcomes):
    f = values(c)
    mean, variance = likelihood.conditional_moments(f)
    want = [first_two(indicators(outcomes(row), c)) for row in f.numpy()]
    oracles.assert_close(mean, np.stack([m for m, _ in want]), DOUBLE, factor=1e4)
    oracles.assert_close(variance, np.stack([v for _, v in want]), DOUBLE, factor=1e4)


@LIKELIHOODS
def test_samples_are_as_frequent_as_they_are_probable(likelihood, c, outcomes, generators_untouched):
    f = values(c, 1)
    several = repeated(likelihood, 0, SAMPLES)
    at = f.expand(SAMPLES, c)
    y = several.sample(at, torch.Generator().manual_seed(0))
    checked = likelihood.targets(y, SAMPLES, c)
    assert torch.equal(checked, y)
    assert y.dtype == checked.dtype
    assert torch.equal(y, several.sample(at, torch.Generator().manual_seed(0)))
    assert not torch.equal(y, several.sample(at, torch.Generator().manual_seed(1)))
    if isinstance(plain(likelihood), jacana.Gaussian | jacana.HeteroscedasticGaussian):
        mean, variance = several.conditional_moments(at)
        oracles.assert_gaussian_samples(y, mean[0], torch.diag(variance[0]), false_alarm=FALSE_ALARM)
        return
    options = outcomes(f[0].numpy())
    counts = {tuple(np.atleast_1d(k)): 0 for k, _ in options}
    for row in y.view(SAMPLES, -1).tolist():
        counts[tuple(row)] += 1
    found = np.array([counts[tuple(np.atleast_1d(k))] for k, _ in options])
    expected = SAMPLES * np.array([weight for _, weight in options])
    rare = expected < 20.0  # the χ² approximation needs as many; the rare are one class together
    found = np.append(found[~rare], found[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    found, expected = found[expected > 1e-9], expected[expected > 1e-9]
    assert len(found) > 1
    assert scipy.stats.chisquare(found, expected * (SAMPLES / expected.sum())).pvalue > FALSE_ALARM


def test_without_a_generator_samples_come_from_torchs_own():
    f = values(3)
    torch.manual_seed(3)
    first = jacana.Categorical().sample(f.repeat(20, 1))
    torch.manual_seed(3)
    assert torch.equal(first, jacana.Categorical().sample(f.repeat(20, 1)))


def test_a_rate_that_cannot_be_counted_is_refused():
    with pytest.raises(jacana.errors.InvalidData, match="rate"):
        jacana.Poisson().sample(torch.full((2, 1), 800.0))


def latent(c, m=2, scale=0.5):
    """Means and covariances of some examples, correlated."""
    generator = torch.Generator().manual_seed(c)
    mean = 0.4 * torch.randn(m, c, generator=generator, dtype=DOUBLE)
    A = torch.randn(m, c, c, generator=generator, dtype=DOUBLE)
    return mean, scale**2 * (A @ A.mT) / c


@pytest.mark.parametrize("name", ["Poisson", "Gaussian", "Gaussian, by output", "heteroscedastic"])
def test_moments_are_those_of_outcomes_averaged_over_the_latent(name):
    """Every y at every node of a product rule for f, with the product of their weights."""
    likelihood, c, outcomes = TRIALS[name]
    mean, covariance = latent(c, scale=0.3)
    nodes, weight = np.polynomial.hermite_e.hermegauss(30)
    weight = weight / weight.sum()
    got = likelihood.moments(mean, covariance)
    for i in range(len(mean)):
        root = np.linalg.cholesky(covariance[i].numpy())
        pairs = []
        for k in np.ndindex(*(len(nodes) for _ in range(c))):
            share = float(np.prod(weight[list(k)]))
            if share > 1e-17:
                f = mean[i].numpy() + root @ nodes[list(k)]
                pairs += [(y, share * w) for y, w in outcomes(f)]
        want = first_two(pairs)
        for found, wanted in zip(got, want, strict=True):
            oracles.assert_close(found[i], wanted, DOUBLE, factor=1e5)


@pytest.mark.parametrize("name", [name for name in TRIALS if name != "weighted Gaussian"])
def test_moments_are_those_of_the_general_way(name):
    """By nodes and the law of total variance; in several dimensions, and for classes, one of both approximates.

    The general way takes many values of an example at once, where noise of its own does not fit.
    """
    likelihood, c, _ = TRIALS[name]
    mean, covariance = latent(c, m=4)
    got = likelihood.moments(mean, covariance)
    want = jacana.Likelihood.moments(likelihood, mean, covariance)
    kind = plain(likelihood)
    exact = isinstance(kind, jacana.Gaussian) or (isinstance(kind, jacana.Poisson) and c == 1)
    for found, wanted in zip(got, want, strict=True):
        if exact:
            oracles.assert_close(found, wanted, DOUBLE, factor=1e4)
        else:
            classes = isinstance(kind, jacana.Categorical | jacana.Bernoulli)
            np.testing.assert_allclose(found, wanted, rtol=0.03, atol=0.03 if classes else 0.003)


@pytest.mark.parametrize("name", ["categorical", "Bernoulli", "many labels", "weighted"])
def test_moments_of_classes_are_those_of_an_indicator(name):
    likelihood, c, _ = TRIALS[name]
    mean, covariance = latent(c, m=4)
    expectation, variance = likelihood.moments(mean, covariance)
    p = likelihood.probit(mean, covariance)
    oracles.assert_close(expectation, p, DOUBLE)
    oracles.assert_close(variance, p * (1.0 - p), DOUBLE)


def test_moments_of_counts_are_finite_as_long_as_they_are():
    mean, covariance = torch.tensor([[500.0], [-800.0]], dtype=DOUBLE), torch.zeros(2, 1, 1, dtype=DOUBLE)
    expectation, variance = jacana.Poisson().moments(mean, covariance)
    assert torch.equal(expectation, variance)
    assert float(expectation[0]) == pytest.approx(math.exp(500.0))


def test_noise_of_other_examples_is_refused():
    likelihood = jacana.Gaussian(torch.ones(4, 2))
    mean, covariance = latent(2, m=3)
    for asked in (lambda: likelihood.moments(mean, covariance), lambda: likelihood.sample(mean)):
        with pytest.raises(jacana.errors.InvalidOption, match="noise_std"):
            asked()
    assert likelihood.moments(*latent(2, m=4))[1].shape == (4, 2)


class Own(jacana.Likelihood):
    """With what a likelihood must have, and no more."""

    def log_prob(self, f, y):
        return -(y - f).abs().sum(1) - f.shape[1] * math.log(2.0)

    def gradient(self, f, y):
        return (y - f).sign()

    def curvature(self, f):
        return torch.eye(f.shape[1], dtype=f.dtype).expand(len(f), -1, -1)


@pytest.mark.parametrize(
    ("ask", "method"),
    [
        (lambda own: own.sample(torch.zeros(2, 1)), "sample"),
        (lambda own: own.moments(torch.zeros(2, 1), torch.ones(2, 1, 1)), "conditional_moments"),
        (lambda own: own.conditional_moments(torch.zeros(2, 1)), "conditional_moments"),
        (lambda own: own.probabilities(torch.zeros(2, 1)), "probabilities"),
        (lambda own: own.probit(torch.zeros(2, 1), torch.ones(2, 1, 1)), "probit"),
        (lambda own: jacana.Weighted(own, [1.0, 2.0]).sample(torch.zeros(2, 1)), "sample"),
        (lambda own: jacana.Gaussian(1.0).probabilities(torch.zeros(2, 1)), "probabilities"),
    ],
)
def test_what_a_likelihood_does_not_say_is_asked_for(ask, method):
    with pytest.raises(jacana.errors.InvalidOption, match=rf"has no {method}\(.*write this method"):
        ask(Own())


@pytest.mark.parametrize("c", [1, 3])
def test_conditional_moments_are_enough_for_moments(c):
    class Laplacian(Own):
        def conditional_moments(self, f):
            return f, torch.full_like(f, 2.0)

    mean, covariance = latent(c)
    expectation, variance = Laplacian().moments(mean, covariance)
    oracles.assert_close(expectation, mean, DOUBLE)
    oracles.assert_close(variance, covariance.diagonal(dim1=1, dim2=2) + 2.0, DOUBLE, factor=1e3)


@LIKELIHOODS
def test_outputs_that_may_be_taken_apart_are_said_to(likelihood, c, outcomes):
    """By output: each target from its own output, by the rule of any other."""
    f = values(c)
    y = drawn(likelihood, f, outcomes)
    kind = plain(likelihood)
    apart = y.shape == f.shape and (not isinstance(kind, jacana.Gaussian) or kind.noise_std.ndim == 0)
    assert likelihood.by_output == apart
    if apart:
        each = [likelihood.log_prob(f[:, [k]], y[:, [k]]) for k in range(c)]
        oracles.assert_close(likelihood.log_prob(f, y), torch.stack(each).sum(0), DOUBLE)


# Weights ------------------------------------------------------------------------------------------------


def test_weight_two_is_the_example_twice():
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 2, dtype=DOUBLE), torch.tensor([0, 2, 1, 1, 0])
    again = torch.tensor([0, 1, 1, 2, 3, 4, 4])
    likelihood = jacana.Weighted(jacana.Categorical(), [1, 2, 1, 1, 2])
    f = net(x).detach()
    want = jacana.Categorical().log_prob(f[again], y[again]).sum()
    oracles.assert_close(likelihood.log_prob(f, y).sum(), want, DOUBLE)
    one = jacana.Fisher(net, x, likelihood, batch_size=2)
    two = jacana.Fisher(net, x[again], jacana.Categorical())
    oracles.assert_close(one.to_dense(), two.to_dense(), DOUBLE, factor=1e3)
    oracles.assert_close(one.diagonal(), two.diagonal(), DOUBLE)
    gradient = torch.zeros(5, 3, dtype=DOUBLE).index_add(0, again, jacana.Categorical().gradient(f[again], y[again]))
    oracles.assert_close(likelihood.gradient(f, y), gradient, DOUBLE)


def test_weight_zero_is_no_example_whatever_it_says():
    f, y = torch.tensor([[2000.0], [1.0]], dtype=DOUBLE), torch.tensor([[1.0], [2.0]], dtype=DOUBLE)
    likelihood, alone = jacana.Weighted(jacana.Poisson(), [0.0, 1.0]), jacana.Poisson()
    v = torch.ones(2, 1, 1, dtype=DOUBLE)
    for got, want in (
        (likelihood.log_prob(f, y), alone.log_prob(f, y)),
        (likelihood.gradient(f, y), alone.gradient(f, y)),
        (likelihood.curvature(f), alone.curvature(f)),
        (likelihood.curvature_times(f, v), alone.curvature_times(f, v)),
        (likelihood.curvature_root(f), alone.curvature_root(f)),
    ):
        assert not bool(torch.isfinite(want[0]).all())
        assert not got[0].any()
        oracles.assert_close(got[1], want[1], DOUBLE)
    assert not likelihood.part(0, 1).log_prob(f[:1], y[:1]).any()


@pytest.mark.parametrize(
    "wrong", [[1.0, -1.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], 2.0, [[1.0]], [], "two", [1j], None]
)
def test_weights_that_are_none_are_refused(wrong):
    with pytest.raises(jacana.errors.InvalidOption, match="weights"):
        jacana.Weighted(jacana.Categorical(), wrong)


@pytest.mark.usefixtures("as_users_run_it")
def test_weights_of_nothing_are_refused():
    with pytest.raises(jacana.errors.InvalidOption, match="likelihood"):
        jacana.Weighted("Gaussian", [1.0])


def test_weights_of_other_examples_are_refused():
    likelihood = jacana.Weighted(jacana.Categorical(), [1.0, 2.0])
    likelihood.check(2, 3)
    for asked in (
        lambda: likelihood.check(3, 3),
        lambda: likelihood.check(2, 1),
        lambda: likelihood.curvature(torch.zeros(3, 2)),
        lambda: jacana.Fisher(torch.nn.Linear(2, 2), torch.zeros(3, 2), likelihood),
    ):
        with pytest.raises(jacana.errors.InvalidOption, match=r"weights|output"):
            asked()


def test_weighted_likelihoods_are_equal_where_all_they_say_is():
    one = jacana.Weighted(jacana.Gaussian(0.5), [1.0, 2.0])
    assert one == jacana.Weighted(jacana.Gaussian(0.5), torch.tensor([1, 2]))
    assert hash(one) == hash(jacana.Weighted(jacana.Gaussian(0.5), torch.tensor([1, 2])))
    assert one != jacana.Weighted(jacana.Gaussian(0.5), [1.0, 3.0])
    assert one != jacana.Weighted(jacana.Gaussian(0.25), [1.0, 2.0])
    assert one != jacana.Gaussian(0.5)
    assert repr(one) == "Weighted(Gaussian(noise_std=0.5), weights=[1.0, 2.0])"
    assert repr(jacana.Weighted(jacana.Poisson(), np.ones(9))) == "Weighted(Poisson(), weights=(9,))"
    assert one.by_output
    assert not jacana.Weighted(jacana.Categorical(), [1.0]).by_output


def test_weights_are_a_copy():
    given = torch.ones(3, dtype=DOUBLE)
    likelihood = jacana.Weighted(jacana.Poisson(), given)
    given.zero_()
    assert torch.equal(likelihood.weights, torch.ones(3, dtype=DOUBLE))


@LIKELIHOODS
def test_the_probability_of_an_observation_is_its_average(likelihood, c, outcomes):
    """E p(y | f) by a dense product rule; for classes within what their closed form is off by."""
    n = 4
    f = values(c, n)
    root = 0.3 * torch.randn(n, c, c, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    covariance = root @ root.mT
    y = drawn(likelihood, f, outcomes)
    places, shares = np.polynomial.hermite_e.hermegauss(14)
    grid = np.stack(np.meshgrid(*[places] * c), -1).reshape(-1, c)
    weight = np.stack(np.meshgrid(*[shares / shares.sum()] * c), -1).reshape(-1, c).prod(1)
    lower = torch.linalg.cholesky(covariance + 1e-14 * torch.eye(c))
    base = plain(likelihood)
    total = torch.zeros(n, dtype=DOUBLE)
    for z, w in zip(torch.from_numpy(grid), weight, strict=True):
        total += w * base.log_prob(f + lower @ z, y).exp()
    want = total.log()
    got = likelihood.log_expected(f, covariance, y)
    scale = weights(likelihood) if isinstance(likelihood, jacana.Weighted) else torch.ones(n, dtype=DOUBLE)
    closed = isinstance(base, jacana.Gaussian) or (isinstance(base, jacana.Poisson) and c == 1)
    assert float((got / scale - want).abs().max()) < (1e-5 if closed else 0.1)


@pytest.mark.parametrize(("base", "c"), [(jacana.Categorical(), 3), (jacana.Bernoulli(), 1), (jacana.Bernoulli(), 3)])
def test_what_is_sharpened_learns_as_before_and_says_what_it_would_of_other_values(base, c):
    f, tau = values(c), 1.7
    sharp, blunt = jacana.Tempered(base, 3.0, tau), jacana.Tempered(base, 3.0)
    root = 0.5 * torch.randn(4, c, c, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    covariance = root @ root.mT
    y = base.targets(torch.tensor([0, 1, 1, 0]) if c == 1 or isinstance(base, jacana.Categorical) else f > 0, 4, c)
    for name in ("gradient", "log_prob"):
        assert torch.equal(getattr(sharp, name)(f, y), getattr(blunt, name)(f, y))
    assert torch.equal(sharp.curvature(f), blunt.curvature(f))
    assert torch.equal(sharp.curvature_root(f), blunt.curvature_root(f))
    assert torch.equal(sharp.probabilities(f), base.probabilities(tau * f))
    draws = (one.sample(g * f, torch.Generator().manual_seed(2)) for one, g in ((sharp, 1.0), (base, tau)))
    assert torch.equal(*draws)
    for got, want in zip(sharp.conditional_moments(f), base.conditional_moments(tau * f), strict=True):
        assert torch.equal(got, want)
    moved = tau * f, tau**2 * covariance
    for got, want in zip(sharp.moments(f, covariance), base.moments(*moved), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(sharp.log_expected(f, covariance, y), base.log_expected(*moved, y))
    for way in (jacana.Probit(), jacana.MonteCarlo(), jacana.LaplaceBridge()):
        want = way.probabilities(base, *moved)
        for likelihood in (sharp, jacana.Weighted(sharp, torch.ones(4)), jacana.Tempered(sharp, 2.0)):
            oracles.assert_close(way.probabilities(likelihood, f, covariance), want, DOUBLE)
    want = mutual_information(base, *moved)
    oracles.assert_close(mutual_information(sharp, f, covariance), want, DOUBLE, scale=1.0)
    assert sharp.at(torch.tensor([0])).sharpness == sharp.part(0, 2).sharpness == tau


def test_what_cannot_temper_is_refused(as_users_run_it):
    for wrong in (0.0, -1.0, math.inf, math.nan, True, "2"):
        with pytest.raises(jacana.errors.InvalidOption, match="power"):
            jacana.Tempered(jacana.Categorical(), wrong)
        with pytest.raises(jacana.errors.InvalidOption, match="sharpness"):
            jacana.Tempered(jacana.Categorical(), 2.0, wrong)
    with pytest.raises(jacana.errors.InvalidOption, match="likelihood"):
        jacana.Tempered("softmax", 2.0)


def test_tempered_twice_is_tempered_by_the_product():
    f, y = values(3), torch.tensor([0, 1, 2, 1])
    twice = jacana.Tempered(jacana.Tempered(jacana.Categorical(), 2.0), 1.5)
    oracles.assert_close(twice.curvature(f), 3.0 * jacana.Categorical().curvature(f), DOUBLE)
    oracles.assert_close(
        twice.log_expected(f, torch.zeros(4, 3, 3, dtype=DOUBLE), y), f.log_softmax(1)[range(4), y], DOUBLE, scale=10
    )
