"""Variational inference against dense matrices, other nodes and brute force, in float64 and float32.

The oracles are numpy and scipy alone: the Jacobian by loops of reverse mode, expectations by Gauss and Hermite's rule
on Cholesky roots (the package takes trapezoids and other roots), Kullback and Leibler's divergence by its definition.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from torch import nn

import jacana
from jacana import FunctionSpace, Variational, WeightSpace
from jacana.errors import InsufficientMemory, InvalidData, InvalidOption, NotConverged, NotPositiveDefinite
from jacana.linearization import Prior
from jacana.posteriors import Model, families, observe
from jacana.posteriors.expectations import Expectations, root_of
from jacana.posteriors.families import FullCovariance, MeanField, mean_field
from jacana.posteriors.sides import KernelSide, WeightSide
from tests import oracles, zoo

pytestmark = pytest.mark.usefixtures("as_users_run_it")  # the contracts check the shapes of the same calls

DOUBLE = torch.float64
TIGHT = 1e-13
FAMILIES = {"full": FullCovariance(), "mean field": MeanField()}
BOTH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


# Problems --------------------------------------------------------------------------------------------


def bernoulli(f, y):
    """Log p, its gradient and its curvature, (q, n), (q, n, c) and (q, n, c, c), of f (q, n, c)."""
    p = scipy.special.expit(f)
    H = np.einsum("qnc,cd->qncd", p * (1 - p), np.eye(f.shape[-1]))
    return (y * f - np.logaddexp(0, f)).sum(-1), y - p, H


def poisson(f, y):
    H = np.einsum("qnc,cd->qncd", np.exp(f), np.eye(f.shape[-1]))
    return scipy.stats.poisson.logpmf(y, np.exp(f)).sum(-1), y - np.exp(f), H


def categorical(f, y):
    p = scipy.special.softmax(f, axis=-1)
    H = np.einsum("qnc,cd->qncd", p, np.eye(f.shape[-1])) - p[..., :, None] * p[..., None, :]
    one = np.eye(f.shape[-1])[y]
    return (scipy.special.log_softmax(f, axis=-1) * one).sum(-1), one - p, H


def heteroscedastic(f, y):
    d = f.shape[-1] // 2
    mean, rest = f[..., :d], y - f[..., :d]
    precision = np.exp(-f[..., d:])
    slope = np.concatenate([rest * precision, 0.5 * (rest**2 * precision - 1)], -1)
    H = np.einsum("qnc,cd->qncd", np.concatenate([precision, 0.5 + 0 * mean], -1), np.eye(2 * d))
    return scipy.stats.norm.logpdf(y, mean, precision**-0.5).sum(-1), slope, H


@dataclass(frozen=True, eq=False)
class Task:
    """A network with targets for a likelihood, and what the oracle knows of them."""

    name: str
    likelihood: jacana.Likelihood
    oracle: Callable
    c: int
    n: int = 12
    prior_std: float | dict[str, float] = 1.0
    width: int = 4
    nodes: int = 40

    def __post_init__(self):
        case = zoo.Case(self.name, lambda: zoo.mlp(2, self.width, self.c), zoo.vectors(2))
        net, x, x_new = case.net(DOUBLE), case.x(self.n, DOUBLE), case.x(50, DOUBLE)[:5]
        rng = np.random.default_rng(self.c)
        wanted = x.numpy() @ rng.normal(size=(2, self.c)) * 1.5
        if self.oracle is categorical:
            y = (wanted + rng.gumbel(size=wanted.shape)).argmax(1)
        elif self.oracle is bernoulli:
            y = (rng.uniform(size=wanted.shape) < scipy.special.expit(wanted)).astype(float)
        elif self.oracle is poisson:
            y = rng.poisson(np.exp(0.5 * wanted)).astype(float)
        else:
            y = wanted[:, : self.c // 2] + rng.normal(size=(self.n, self.c // 2))
        for key, value in {"net": net, "x": x, "x_new": x_new, "Y": y, "y": torch.from_numpy(y)}.items():
            object.__setattr__(self, key, value)
        object.__setattr__(self, "gp", jacana.TangentGP(net, prior_std=self.prior_std))
        object.__setattr__(self, "J", oracles.jacobian(net, x))
        object.__setattr__(self, "J_new", oracles.jacobian(net, x_new))
        object.__setattr__(self, "s", oracles.prior_deviations(net, self.prior_std))
        object.__setattr__(self, "m", oracles.outputs(net, x))
        object.__setattr__(self, "kept", {})

    def fit(self, family=None, method=None, rtol=TIGHT, **options):
        how = Variational(family or FullCovariance(), method, rtol=rtol, **options)
        if options or how not in self.kept:
            self.kept[how] = self.gp.condition(self.x, self.y, likelihood=self.likelihood, method=how)
        return self.kept[how]

    def expect(self, mean, covariance):
        """E log p (n,), E gradient (n, c) and E curvature (n, c, c), by a product of Gauss and Hermite's rules."""
        places, weights = np.polynomial.hermite_e.hermegauss(self.nodes if self.c < 3 else 24)
        grid = np.stack(np.meshgrid(*[places] * self.c, indexing="ij"), -1).reshape(-1, self.c)
        shares = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * self.c, indexing="ij"), -1), -1).ravel()
        L = np.linalg.cholesky(covariance + 1e-14 * np.eye(self.c))
        found = self.oracle(mean + np.einsum("ncd,qd->qnc", L, grid), self.Y)
        return [np.tensordot(shares, values, 1) for values in found]

    def at_data(self, weights, covariance):
        """Mean (n, c) and covariance (n, c, c) of f at each example."""
        J = self.J.reshape(self.n, self.c, -1)
        return self.m + J @ weights, J @ covariance @ J.swapaxes(1, 2)

    def bound(self, weights, covariance):
        """E log p − KL, the second by its definition."""
        S, p = self.s**2, len(self.s)
        log_ratio = np.log(S).sum() - np.linalg.slogdet(covariance)[1]
        divergence = 0.5 * ((np.diag(covariance) / S).sum() + (weights**2 / S).sum() - p + log_ratio)
        return self.expect(*self.at_data(weights, covariance))[0].sum() - divergence

    def covariance(self, H):
        """(S⁻¹ + Jᵀ H J)⁻¹."""
        return np.linalg.inv(np.diag(self.s**-2) + oracles.gauss_newton(self.J, H))


TASKS = {
    task.name: task
    for task in (
        Task("one label", jacana.Bernoulli(), bernoulli, 1, nodes=100),
        Task("two labels", jacana.Bernoulli(), bernoulli, 2, nodes=60, width=9),
        Task("counts", jacana.Poisson(), poisson, 1, nodes=100, prior_std={"0": 0.4, "2": 1.4}),
        Task("two classes", jacana.Categorical(), categorical, 2, nodes=60),
    )
}
THREE = Task("three classes", jacana.Categorical(), categorical, 3)
NOISE = Task("noise too", jacana.HeteroscedasticGaussian(), heteroscedastic, 2, n=20, prior_std=0.3)
EACH = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def scales(post):
    """S of the weights under an independent q, over the prior's."""
    spread = post._state.optimum.spread
    return (spread._std / post._state.observations.model.prior.vector(torch.device("cpu"))).numpy()


def diagonal(task, post):
    return np.diag((task.s * scales(post)) ** 2)


# The optimum -----------------------------------------------------------------------------------------


@EACH
def test_full_covariance_solves_its_equations(task):
    """δ̂ = S Jᵀ E ∇ log p and Σ⁻¹ = S⁻¹ + Jᵀ E[H] J, with the bound that the definition gives."""
    post = task.fit()
    at_data = post.predict(task.x).covariance.numpy().reshape(task.n, task.c, task.n, task.c)
    V = np.stack([at_data[i, :, i] for i in range(task.n)])
    weights = post.weights.numpy()
    _, gradient, H = task.expect(task.m + (task.J @ weights).reshape(task.m.shape), V)
    oracles.assert_close(weights, task.s**2 * (task.J.T @ gradient.ravel()), DOUBLE, factor=5e10, what="mean")  # 1e-5
    covariance = task.covariance(H)
    scale = np.abs((task.J_new * task.s**2) @ task.J_new.T).max()
    got = post.predict(task.x_new)
    want = task.J_new @ covariance @ task.J_new.T
    oracles.assert_close(got.covariance, want, DOUBLE, scale=scale, factor=5e10, what="covariance")
    assert post.log_evidence == pytest.approx(task.bound(weights, covariance), abs=1e-8)


@EACH
def test_no_gaussian_nearby_has_a_higher_bound(task):
    """Any change of the mean, and of the covariance in or out of the family, lowers the oracle's bound."""
    post = task.fit()
    rng = np.random.default_rng(0)
    V = post.predict(task.x).covariance.numpy().reshape(task.n, task.c, task.n, task.c)
    V = np.stack([V[i, :, i] for i in range(task.n)])
    weights = post.weights.numpy()
    H = task.expect(task.m + (task.J @ weights).reshape(task.m.shape), V)[2]
    covariance = task.covariance(H)
    best = task.bound(weights, covariance)
    root = np.linalg.cholesky(covariance)
    for _ in range(5):
        for step in (0.03, 0.1):
            move = root @ rng.normal(size=len(weights)) / np.sqrt(len(weights))
            assert task.bound(weights + step * move, covariance) < best
            skew = rng.normal(size=root.shape) / len(weights)
            turned = root @ (np.eye(len(root)) + step * skew)
            assert task.bound(weights, turned @ turned.T) < best


@EACH
def test_mean_field_has_no_gradient_at_its_end_and_its_scales_moved(task):
    """By automatic differentiation of a dense bound in each mean and each log scale, which the paper's did not move."""
    post = task.fit(MeanField())
    J = torch.from_numpy(task.J * task.s).view(task.n, task.c, -1)
    w = (post.weights / torch.from_numpy(task.s)).requires_grad_()
    log_s = torch.from_numpy(np.log(scales(post))).requires_grad_()
    places, weights = np.polynomial.hermite_e.hermegauss(task.nodes)
    grid = torch.from_numpy(np.stack(np.meshgrid(*[places] * task.c, indexing="ij"), -1).reshape(-1, task.c))
    shares = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * task.c, indexing="ij"), -1), -1).ravel()
    root = torch.linalg.cholesky((J * (2 * log_s).exp()) @ J.mT)
    f = torch.from_numpy(task.m) + J @ w + torch.einsum("ncd,qd->qnc", root, grid)
    log_prob = sum(share * task.likelihood.log_prob(some, task.y).sum() for share, some in zip(shares, f, strict=True))
    divergence = 0.5 * ((2 * log_s).exp() - 1 - 2 * log_s).sum() + 0.5 * w.square().sum()
    bound = log_prob - divergence
    bound.backward()
    bound = bound.detach()
    assert post.log_evidence == pytest.approx(float(bound), abs=1e-8)
    assert w.grad.abs().max() < 1e-5
    assert log_s.grad.abs().max() < 1e-5
    assert scales(post).max() <= 1.0
    assert scales(post).min() < 0.8
    at_start = task.gp.condition(task.x, task.y, likelihood=task.likelihood, method=jacana.Laplace())
    H = task.likelihood.curvature(torch.from_numpy(task.m + (task.J @ at_start.weights.numpy()).reshape(task.n, -1)))
    F = oracles.gauss_newton(task.J * task.s, H.numpy())
    assert np.abs(scales(post) - (1 + np.diag(F)) ** -0.5).max() > 1e-3


@EACH
@BOTH
def test_the_bound_grows_from_that_of_laplaces_gaussian(task, family):
    laplace = task.gp.condition(task.x, task.y, likelihood=task.likelihood, method=jacana.Laplace())
    weights = laplace.weights.numpy()
    H = task.likelihood.curvature(torch.from_numpy(task.m + (task.J @ weights).reshape(task.n, -1))).numpy()
    covariance = task.covariance(H)
    if family == MeanField():
        covariance = np.diag(1 / (task.s**-2 + np.diag(oracles.gauss_newton(task.J, H))))
    bounds = np.array(task.fit(family)._state.optimum.bounds)
    assert bounds[0] == pytest.approx(task.bound(weights, covariance), abs=1e-8)
    assert len(bounds) > 3
    assert bounds[-1] > bounds[0] + 1e-3
    assert np.diff(bounds).min() > -1e-11


@EACH
@BOTH
def test_one_side_is_the_other(task, family):
    one, two = (task.fit(family, method) for method in (FunctionSpace(), WeightSpace()))
    assert one.log_evidence == pytest.approx(two.log_evidence, abs=1e-9)
    left, right = one.predict(task.x_new), two.predict(task.x_new)
    for what in ("mean", "variance", "covariance"):
        torch.testing.assert_close(getattr(left, what), getattr(right, what), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-6, atol=1e-6)


@EACH
def test_the_larger_family_has_the_higher_bound(task):
    assert task.fit().log_evidence > task.fit(MeanField()).log_evidence + 0.1


def test_three_classes_on_quasi_random_nodes():
    """256 of them: mean and covariance to 2 % of the best by 24³ nodes, the bound to .01."""
    post = THREE.fit()
    V = post.predict(THREE.x).covariance.numpy().reshape(THREE.n, 3, THREE.n, 3)
    V = np.stack([V[i, :, i] for i in range(THREE.n)])
    weights = post.weights.numpy()
    for _ in range(30):  # the oracle's own way to the best from there
        _, gradient, H = THREE.expect(THREE.m + (THREE.J @ weights).reshape(THREE.m.shape), V)
        covariance = THREE.covariance(H)
        slope = THREE.J.T @ gradient.ravel() - weights / THREE.s**2
        V = THREE.at_data(weights + covariance @ slope, covariance)[1]
        weights = weights + covariance @ slope
    assert np.abs(slope).max() < 1e-6
    best = THREE.bound(weights, covariance)
    oracles.assert_close(post.weights, weights, DOUBLE, factor=0.02 / 2.3e-16, what="mean")
    got, want = post.predict(THREE.x_new).covariance.numpy(), THREE.J_new @ covariance @ THREE.J_new.T
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert abs(post.log_evidence - best) < 0.01


# Against the evidence itself -------------------------------------------------------------------------


class Line(nn.Module):
    """Outputs that one parameter moves, in other directions at other examples."""

    def __init__(self, c):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.3], dtype=DOUBLE))
        self.c = c

    def forward(self, x):
        return torch.cat([x * self.slope, 0.4 - x**2 * self.slope], 1)[:, : self.c]


ONE_PARAMETER = {
    "label": (1, jacana.Bernoulli(), bernoulli, [1, 0, 1, 1, 1.0], 0.02),
    "separable": (1, jacana.Bernoulli(), bernoulli, [0, 0, 1, 1, 1.0], 0.1),
    "counts": (1, jacana.Poisson(), poisson, [0, 1, 1, 0, 4.0], 0.02),
    "zeros": (1, jacana.Poisson(), poisson, [3, 1, 0, 0, 0.0], 0.02),
    "classes": (2, jacana.Categorical(), categorical, [1, 0, 0, 1, 0], 0.05),
}


@pytest.mark.parametrize("name", ONE_PARAMETER)
@BOTH
def test_one_parameter_by_brute_force(name, family):
    """Below the evidence by less than a stated gap, and where a search over mean and variance ends too."""
    c, likelihood, oracle, y, gap = ONE_PARAMETER[name]
    x = torch.tensor([[-1.5], [-0.4], [0.3], [0.8], [2.0]], dtype=DOUBLE)
    Y, std = np.array(y)[:, None] if c == 1 else np.array(y), 2.0
    gp = jacana.TangentGP(Line(c), prior_std=std)
    post = gp.condition(x, torch.from_numpy(Y), likelihood=likelihood, method=Variational(family, rtol=TIGHT))
    m, J = oracles.outputs(Line(c), x), oracles.jacobian(Line(c), x).reshape(5, c)
    delta = np.linspace(-12, 12, 20001) * std

    def log_joint(values):
        return oracle(m + values[:, None, None] * J, Y)[0].sum(1)

    evidence = np.log(np.trapezoid(np.exp(log_joint(delta)) * scipy.stats.norm.pdf(delta, 0, std), delta))
    z = np.linspace(-9, 9, 2001)
    weights = scipy.stats.norm.pdf(z) * (z[1] - z[0])

    def bound(at):
        mean, s = at[0], np.exp(at[1])
        divergence = 0.5 * (s**2 / std**2 + mean**2 / std**2 - 1 - 2 * np.log(s / std))
        return weights @ log_joint(mean + s * z) - divergence

    assert evidence - gap < post.log_evidence < evidence
    best = scipy.optimize.minimize(lambda at: -bound(at), [0.0, 0.0], method="Nelder-Mead", tol=1e-12)
    assert post.log_evidence == pytest.approx(-best.fun, abs=1e-9)
    assert float(post.weights) == pytest.approx(best.x[0], abs=1e-5)
    deviation = post._state.optimum.spread.deviations(1, torch.Generator().manual_seed(0))
    noise = torch.randn(1, 1, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert abs(float(deviation / noise)) == pytest.approx(np.exp(best.x[1]), rel=1e-5)
    spread = np.exp(2 * best.x[1]) * J[:, :1] ** 2
    np.testing.assert_allclose(post._state.variance(post.examples(x))[:, :1].numpy(), spread, rtol=1e-5, atol=1e-9)


# Closed forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [FunctionSpace(), WeightSpace()], ids=["function space", "weight space"])
def test_gaussian_noise_is_exact_regression(method, dtype):
    case = zoo.Case("regression", lambda: zoo.mlp(2, 4, 2), zoo.vectors(2))
    net, x, x_new = case.net(dtype), case.x(9, dtype), case.x(40, dtype)[:4]
    noise = np.random.default_rng(0).uniform(0.2, 0.5, (9, 2))
    y = oracles.outputs(net, x) + np.random.default_rng(1).normal(size=(9, 2))
    gp = jacana.TangentGP(net)
    post = gp.condition(x, torch.from_numpy(y), torch.from_numpy(noise), method=Variational(method=method))
    known = {"J": oracles.jacobian(net, x), "s": np.ones(26 - 4), "mean": oracles.outputs(net, x), "y": y}
    known |= {"sigma": noise}
    want = oracles.condition_on_functions(
        **known, J_new=oracles.jacobian(net, x_new), mean_new=oracles.outputs(net, x_new)
    )
    oracles.assert_close(post.predict(x_new).mean, want.mean, dtype, condition=100.0)
    oracles.assert_close(post.predict(x_new).covariance, want.covariance, dtype, condition=100.0, scale=10.0)
    oracles.assert_close(post.log_evidence, oracles.log_evidence(**known), dtype, condition=100.0)
    assert len(post._state.optimum.bounds) <= 2  # at once


def test_mean_field_of_gaussian_noise_in_closed_form():
    """S_j² = 1 / (1 + F_jj), about the exact mean."""
    case = zoo.Case("regression", lambda: zoo.mlp(2, 4, 2), zoo.vectors(2))
    net, x = case.net(), case.x(9)
    y = oracles.outputs(net, x) + np.random.default_rng(1).normal(size=(9, 2))
    gp = jacana.TangentGP(net, prior_std=0.7)
    post = gp.condition(x, torch.from_numpy(y), 0.3, method=Variational(MeanField()))
    exact = gp.condition(x, torch.from_numpy(y), 0.3)
    F = 0.7**2 * (oracles.jacobian(net, x) ** 2).sum(0) / 0.3**2
    np.testing.assert_allclose(scales(post) ** 2, 1 / (1 + F), rtol=1e-12)
    torch.testing.assert_close(post.weights, exact.weights, rtol=1e-9, atol=1e-9)
    assert post.log_evidence < exact.log_evidence


def test_weights_that_do_not_share_an_example_are_independent():
    """An orthogonal design: the posterior factorises, and the families agree."""
    net = nn.Linear(4, 1, bias=False, dtype=DOUBLE)
    x = torch.diag(torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=DOUBLE)).repeat(2, 1)
    y = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0])
    gp = jacana.TangentGP(net, prior_std=2.0)
    posts = [
        gp.condition(x, y, likelihood=jacana.Bernoulli(), method=Variational(family, rtol=TIGHT))
        for family in FAMILIES.values()
    ]
    assert posts[0].log_evidence == pytest.approx(posts[1].log_evidence, abs=1e-10)
    torch.testing.assert_close(posts[0].weights, posts[1].weights, rtol=1e-6, atol=1e-6)
    one, two = (post.predict(x).covariance for post in posts)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


# Of the mean field alone -----------------------------------------------------------------------------


def test_its_predictions_are_those_of_independent_weights():
    task = TASKS["two labels"]
    post = task.fit(MeanField())
    want = task.J_new @ diagonal(task, post) @ task.J_new.T
    got = post.predict(task.x_new)
    oracles.assert_close(got.covariance, want, DOUBLE)
    oracles.assert_close(got.variance, np.diag(want).reshape(5, 2), DOUBLE)
    blocks = post._state.blocks(post.examples(task.x_new))
    oracles.assert_close(blocks, np.stack([want[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(5)]), DOUBLE)
    drawn = post.sample_weights(4000, torch.Generator().manual_seed(0))
    oracles.assert_gaussian_samples(drawn.T[:, :9], post.weights[:9], diagonal(task, post)[:9, :9])


def test_rows_that_do_not_fit_are_made_again(monkeypatch):
    task = TASKS["two classes"]
    kept = task.fit(MeanField())
    monkeypatch.setattr(mean_field, "fits", lambda nbytes, device: False)
    monkeypatch.setattr(mean_field, "budget", lambda device: 4 * 8 * 2 * len(task.s) * 5)  # five examples at once
    again = task.fit(MeanField(), max_steps=199)
    assert again.log_evidence == pytest.approx(kept.log_evidence, abs=1e-10)
    torch.testing.assert_close(again.predict(task.x_new).covariance, kept.predict(task.x_new).covariance)


# Laws ------------------------------------------------------------------------------------------------


@EACH
@BOTH
def test_the_order_of_the_examples_is_of_no_consequence(task, family):
    order = torch.randperm(task.n, generator=torch.Generator().manual_seed(1))
    how = Variational(family, rtol=TIGHT)
    other = task.gp.condition(task.x[order], task.y[order], likelihood=task.likelihood, method=how)
    post = task.fit(family)
    assert other.log_evidence == pytest.approx(post.log_evidence, abs=1e-9)
    torch.testing.assert_close(other.weights, post.weights, rtol=1e-6, atol=1e-6)


@BOTH
def test_batches_are_of_no_consequence(family):
    task = TASKS["one label"]
    gp = jacana.TangentGP(jacana.linearize(task.net, batch_size=5))
    how = Variational(family, WeightSpace(), rtol=TIGHT)
    other = gp.condition(task.x, task.y, likelihood=task.likelihood, method=how)
    torch.testing.assert_close(other.weights, task.fit(family).weights, rtol=1e-6, atol=1e-6)


@EACH
@BOTH
def test_a_weight_of_two_is_an_example_twice_and_of_zero_is_none(task, family):
    weights = torch.ones(task.n)
    weights[0], weights[1], weights[-1] = 2.0, 3.0, 0.0
    often = torch.arange(task.n).repeat_interleave(weights.int())
    how = Variational(family, rtol=TIGHT)
    weighted = jacana.Weighted(task.likelihood, weights)
    one = task.gp.condition(task.x, task.y, likelihood=weighted, method=how)
    two = task.gp.condition(task.x[often], task.y[often], likelihood=task.likelihood, method=how)
    assert one.log_evidence == pytest.approx(two.log_evidence, abs=1e-9)
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        one.predict(task.x_new).covariance, two.predict(task.x_new).covariance, rtol=1e-6, atol=1e-6
    )


@EACH
@BOTH
def test_more_data_are_all_data(task, family):
    how = Variational(family, rtol=TIGHT)
    some = task.gp.condition(task.x[:4], task.y[:4], likelihood=task.likelihood, method=how)
    more = some.condition(task.x[4:], task.y[4:])
    assert more.method == how
    assert more.n_examples == task.n
    assert more.log_evidence == pytest.approx(task.fit(family).log_evidence, abs=1e-9)
    torch.testing.assert_close(more.weights, task.fit(family).weights, rtol=1e-6, atol=1e-6)


@BOTH
def test_one_example(family):
    task = Task("alone", jacana.Categorical(), categorical, 2, n=1, nodes=60)
    for method in (FunctionSpace(), WeightSpace()):
        post = task.fit(family, method)
        prediction = post.predict(task.x)
        assert bool((prediction.variance > 0.0).all())
        assert int(prediction.probabilities().argmax()) == int(task.y)
        assert post.log_evidence < np.log(0.9)


@BOTH
def test_it_is_the_same_every_time_and_can_be_copied(family, generators_untouched):
    task = TASKS["two classes"]
    one, two = (task.fit(family, max_steps=150 + i) for i in range(2))
    assert one.log_evidence == two.log_evidence
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(one.predict(task.x_new).covariance, two.predict(task.x_new).covariance)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(other.predict(task.x_new).covariance, one.predict(task.x_new).covariance)


def test_single_precision_networks_are_served():
    task = TASKS["two classes"]
    net = copy.deepcopy(task.net).float()
    how = Variational(rtol=TIGHT)
    post = jacana.TangentGP(net).condition(task.x.float(), task.y, likelihood=task.likelihood, method=how)
    assert post.log_evidence == pytest.approx(task.fit().log_evidence, abs=1e-4)


def test_an_expected_curvature_leaves_the_best_mean_for_the_covariance():
    post = NOISE.fit(rtol=1e-11)
    bounds = np.array(post._state.optimum.bounds)
    assert bounds[-1] > bounds[0] + 0.01
    assert np.diff(bounds).min() > -1e-11
    V = post.predict(NOISE.x).covariance.numpy().reshape(NOISE.n, 2, NOISE.n, 2)
    V = np.stack([V[i, :, i] for i in range(NOISE.n)])
    weights = post.weights.numpy()
    gradient = NOISE.expect(NOISE.m + (NOISE.J @ weights).reshape(NOISE.m.shape), V)[1]
    oracles.assert_close(weights, NOISE.s**2 * (NOISE.J.T @ gradient.ravel()), DOUBLE, factor=1e11)  # 2e-5


# Where rates explode, digits are lost and data are bad -----------------------------------------------


def test_a_start_that_is_far_too_wide_is_narrowed():
    """No events under a wide prior: at the mode the curvature is tiny, and the expected rate is e¹⁰⁰."""
    x = torch.tensor([[1.0], [2.0]], dtype=DOUBLE)
    gp = jacana.TangentGP(Line(1), prior_std=9.0)
    post = gp.condition(x, torch.zeros(2), likelihood=jacana.Poisson(), method=Variational())
    bounds = post._state.optimum.bounds
    assert bounds[0] < -1e9
    delta = np.linspace(-12, 12, 20001) * 9.0
    f = 0.3 * x[:, 0].numpy() + delta[:, None] * x[:, 0].numpy()
    with np.errstate(over="ignore"):
        densities = np.exp(-np.exp(f).sum(1)) * scipy.stats.norm.pdf(delta, 0, 9.0)
    evidence = np.log(np.trapezoid(densities, delta))
    assert evidence - 1.0 < post.log_evidence < evidence


def test_targets_of_no_finite_density_are_refused():
    class Cauchy(jacana.Likelihood):
        def log_prob(self, f, y):
            return -((y - f) ** 2).log1p().sum(1) / 0.0

        def gradient(self, f, y):
            return 2 * (y - f) / (1 + (y - f) ** 2)

        def curvature(self, f):
            return torch.full((len(f), 1, 1), 0.5, dtype=f.dtype)

    with pytest.raises(InvalidData, match="are finite neither"):
        jacana.TangentGP(Line(1)).condition(torch.ones(1, 1), torch.ones(1), likelihood=Cauchy(), method=Variational())


def test_variances_left_of_a_large_prior_keep_their_digits():
    """Curvature 1e16 times the prior's inverse: the difference of prior and explained variance has no digit left."""
    case = zoo.Case("digits", lambda: zoo.mlp(2, 8, 2), zoo.vectors(2))
    lin, x = jacana.linearize(case.net()), case.x(3)
    model = Model(lin, Prior.of(lin.network, 1.0), False)
    data = observe(model, x, torch.zeros(3, 2), jacana.Gaussian(1e-8))
    root = torch.full((3, 1, 1), 1e8, dtype=DOUBLE) * torch.eye(2, dtype=DOUBLE)
    one, two = (side.at(root).fitted() for side in (KernelSide.of(data), WeightSide(data)))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-24)
    torch.testing.assert_close(one, 1e-16 * torch.eye(2, dtype=DOUBLE).expand(3, 2, 2), rtol=1e-6, atol=1e-24)


def test_steps_that_do_not_end_are_said():
    task = TASKS["one label"]
    with pytest.warns(NotConverged, match="after 1 steps"):
        first = task.fit(max_steps=1)
    with pytest.warns(NotConverged, match="after 2 steps"):
        second = task.fit(max_steps=2)
    assert first.log_evidence < second.log_evidence < task.fit().log_evidence


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"family": "full"}, "family"),
        ({"family": FullCovariance}, "family"),
        ({"method": "weights"}, "method"),
        ({"method": jacana.Pathwise()}, "method"),
        ({"method": WeightSpace(jacana.CG())}, "method"),
        ({"rtol": 0.0}, "rtol"),
        ({"rtol": True}, "rtol"),
        ({"rtol": float("nan")}, "rtol"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 2.0}, "max_steps"),
    ],
)
def test_impossible_options_are_refused(options, named):
    with pytest.raises(InvalidOption, match=named):
        Variational(**options)


@pytest.mark.parametrize("method", [jacana.Laplace(), jacana.LastLayer(), FunctionSpace(jacana.Eigh())])
def test_methods_that_factorise_no_side_are_refused(method):
    task = TASKS["one label"]
    with pytest.raises(InvalidOption, match="method"):
        task.fit(method=method)


def test_what_is_too_large_to_factorise_is_refused(monkeypatch):
    with monkeypatch.context() as smaller:
        smaller.setattr("jacana.posteriors.side_choice._LARGEST_SIDE", 3)
        with pytest.raises(InvalidOption, match="too many to factorise"):
            TASKS["one label"].fit(rtol=1e-5)
    monkeypatch.setattr("jacana.linearization.memory._free", lambda device: 8 * 8 * 12**2 - 1)
    with pytest.raises(InsufficientMemory, match="a side of 12 rows"):
        TASKS["one label"].fit(method=FunctionSpace(), rtol=1e-5)


def test_the_families_are_where_they_are_said_to_be():
    assert jacana.families is families
    assert hash(Variational()) == hash(Variational(FullCovariance()))
    assert Variational() != Variational(MeanField())


# Expectations ----------------------------------------------------------------------------------------


def expectations(likelihood, c, n, y):
    net = zoo.Case("expectations", lambda: zoo.mlp(2, 3, c), zoo.vectors(2))
    model = Model(jacana.linearize(net.net()), Prior.of(jacana.linearize(net.net()).network, 1.0), False)
    return Expectations(observe(model, net.x(n), y, likelihood), torch.ones(n, dtype=DOUBLE))


@pytest.mark.parametrize("c", [1, 2, 3, 70])
@pytest.mark.parametrize("shape", ["scalar", "outputs", "examples"])
def test_squares_are_integrated_exactly(c, shape):
    n, rng = 3, np.random.default_rng(0)
    sigma = {"scalar": 0.3, "outputs": rng.uniform(0.2, 1.0, c), "examples": rng.uniform(0.2, 1.0, (n, c))}[shape]
    mean, y, A = rng.normal(size=(n, c)), rng.normal(size=(n, c)), rng.normal(size=(n, c, c)) / np.sqrt(c)
    V = A @ A.swapaxes(1, 2)
    found = expectations(jacana.Gaussian(sigma), c, n, torch.from_numpy(y)).at(
        torch.from_numpy(mean), torch.from_numpy(V)
    )
    spread = np.einsum("ncc->nc", V)
    want = scipy.stats.norm.logpdf(y, mean, sigma).sum() - 0.5 * (spread / np.square(sigma)).sum()
    assert found.log_prob == pytest.approx(want, rel=1e-11)
    oracles.assert_close(found.gradient, (y - mean) / np.square(sigma) + 0 * y, DOUBLE, factor=1e3)
    H = np.stack([np.diag(row) for row in 1 / np.square(sigma) + 0 * y])
    oracles.assert_close(found.curvature, H, DOUBLE, factor=1e3)


@pytest.mark.parametrize("s", [0.1, 1.0, 10.0, 20.0])
def test_a_label_however_uncertain(s):
    y = torch.tensor([[0.0], [1.0], [1.0]])
    mean = torch.tensor([[0.0], [3.0], [-7.0]], dtype=DOUBLE)
    found = expectations(jacana.Bernoulli(), 1, 3, y).at(mean, torch.full((3, 1, 1), s**2, dtype=DOUBLE))
    z = np.linspace(-12, 12, 200001)
    f = mean.numpy() + s * z
    weights = scipy.stats.norm.pdf(z) * (z[1] - z[0])
    value, gradient, curvature = bernoulli(f[:, :, None].transpose(1, 0, 2), y.numpy())
    factor = 1e6 if s < 20.0 else 2e11  # 2e-10, 5e-5
    assert found.log_prob == pytest.approx((weights @ value).sum(), rel=1e-6 if s == 20.0 else 1e-11)
    oracles.assert_close(found.gradient, np.tensordot(weights, gradient, 1), DOUBLE, factor=factor)
    oracles.assert_close(found.curvature, np.tensordot(weights, curvature, 1), DOUBLE, factor=factor)


class Together(jacana.Likelihood):
    """Bernoulli, without saying that its outputs are apart."""

    def log_prob(self, f, y):
        return jacana.Bernoulli().log_prob(f, y)

    def gradient(self, f, y):
        return jacana.Bernoulli().gradient(f, y)

    def curvature(self, f):
        return jacana.Bernoulli().curvature(f)


def test_outputs_apart_are_outputs_together():
    y = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    mean = torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=DOUBLE)
    V = torch.tensor([[[1.0, 0.4], [0.4, 0.5]]], dtype=DOUBLE).repeat(2, 1, 1)
    one = expectations(jacana.Bernoulli(), 2, 2, y).at(mean, V)
    two = expectations(Together(), 2, 2, y).at(mean, V)
    assert one.log_prob == pytest.approx(two.log_prob, abs=1e-9)
    torch.testing.assert_close(one.gradient, two.gradient, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(one.curvature, two.curvature, rtol=0.0, atol=1e-8)


def test_a_covariance_that_is_none_is_refused_and_rounding_is_not():
    found = expectations(jacana.Categorical(), 3, 2, torch.tensor([0, 1]))
    mean = torch.zeros(2, 3, dtype=DOUBLE)
    V = torch.diag_embed(torch.tensor([[1.0, 1.0, -1e-15], [1.0, 0.0, 0.5]], dtype=DOUBLE))
    assert np.isfinite(found.at(mean, V).log_prob)
    V[1, 1, 1] = -1e-9
    with pytest.raises(NotPositiveDefinite, match="example 1"):
        found.at(mean, V)


def test_roots_of_curvatures():
    rng = np.random.default_rng(0)
    H = jacana.Categorical().curvature(torch.from_numpy(rng.normal(size=(5, 4))))
    root = root_of(H)
    assert root.shape == (5, 4, 3)  # adding a constant to all logits is of no consequence
    oracles.assert_close(root @ root.mT, H, DOUBLE)
    H[2] = 0.0
    assert root_of(H).shape == (5, 4, 3)
    H[1] = torch.eye(4)
    assert root_of(H).shape == (5, 4, 4)
    oracles.assert_close(root_of(H) @ root_of(H).mT, H, DOUBLE)
    assert not root_of(torch.zeros(2, 3, 3, dtype=DOUBLE)).any()
    with pytest.raises(InvalidOption, match="negative eigenvalue"):
        root_of(-H)
