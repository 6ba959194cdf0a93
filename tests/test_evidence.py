"""Noise and prior by the evidence: never below the best point of a dense grid, and at a summit."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jacana
from tests import oracles, zoo

DOUBLE, SINGLE = torch.float64, torch.float32
ROUNDING = 1e-6  # in units of log evidence: a summit is flat


@dataclass(frozen=True)
class Learned:
    """What the package learned: the kernel that it means, the noise of each output, their evidence by the oracle."""

    gp: jacana.TangentGP
    K: np.ndarray
    noise: np.ndarray
    value: float


class Task:
    """Data for a network, its residual, and the kernel of each layer at prior 1, by the oracles."""

    def __init__(self, net, x, y, mean="network", prior_std=1.0):
        self.net, self.x, self.y = net, x, y
        self.gp = jacana.TangentGP(net, prior_std=prior_std, mean=mean)
        self.J = oracles.jacobian(net, x)
        m = oracles.outputs(net, x)
        self.m = m if mean == "network" else np.zeros_like(m)
        self.n, self.c = m.shape
        self.r = (y.numpy().reshape(self.n, self.c) - self.m).reshape(-1)
        self.s = oracles.prior_deviations(net, prior_std)
        owners = [(name.rpartition(".")[0], p.numel()) for name, p in net.named_parameters()]
        labels = np.concatenate([np.full(size, owner) for owner, size in owners])
        self.layers = list(dict.fromkeys(labels))
        self.kernels = np.stack([self.J[:, labels == owner] @ self.J[:, labels == owner].T for owner in self.layers])
        self.K = (self.J * self.s**2) @ self.J.T

    def evidence(self, K, noise):
        """Of one kernel or many: K (..., n·c, n·c), noise (..., c) or (..., 1)."""
        noise = np.broadcast_to(noise, (*np.shape(noise)[:-1], self.c))
        A = K + np.tile(noise**2, self.n)[..., None] * np.eye(self.n * self.c)
        L = np.linalg.cholesky(A)
        half = np.linalg.solve(L, np.broadcast_to(self.r[:, None], (*A.shape[:-1], 1)))[..., 0]
        logdet = 2 * np.log(np.diagonal(L, axis1=-2, axis2=-1)).sum(-1)
        return -0.5 * ((half**2).sum(-1) + logdet + len(self.r) * np.log(2 * np.pi))

    def found(self, **options):
        gp, likelihood = jacana.maximize_evidence(self.gp, self.x, self.y, **options)
        K = gp.predict(self.x).covariance.numpy()
        noise = np.broadcast_to(np.asarray(likelihood.noise_std, dtype=np.float64), (self.c,)).copy()
        assert np.isfinite(K).all()
        assert (noise > 0).all()
        value = float(self.evidence(K, noise))
        post = gp.condition(self.x, self.y, likelihood=likelihood)
        condition = np.linalg.cond(K + np.diag(np.tile(noise**2, self.n)))
        tolerance = 64 * oracles.eps(DOUBLE) * condition * max(abs(value), len(self.r)) + ROUNDING
        assert abs(post.log_evidence - value) < tolerance, "the evidence reported is not that of what was returned"
        return Learned(gp, K, noise, value)


def make(name, net, n, c, noise, seed, flat=False, **options):
    """Targets drawn from a function of the tangent model, and noise."""
    d = next(net.parameters()).shape[1]
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, d)))
    J, m = oracles.jacobian(net, x), oracles.outputs(net, x)
    if options.get("mean") == "zero":
        m = np.zeros_like(m)
    y = m + (J @ rng.normal(0, 0.8, J.shape[1])).reshape(n, c) + rng.normal(0, 1, (n, c)) * noise
    return Task(net, x, torch.from_numpy(y[:, 0] if flat else y), **options)


def net(d, hidden, c):
    return zoo.Case(f"evidence {d} {hidden} {c}", lambda: zoo.mlp(d, hidden, c), zoo.vectors(d)).net()


@functools.cache
def task(name):
    if name == "p < nc":
        return make(name, net(2, 2, 2), 15, 2, [0.3, 0.3], 1)
    if name == "p > nc":
        return make(name, net(2, 6, 2), 6, 2, [0.1, 0.1], 2)
    if name == "one output":
        return make(name, net(2, 3, 1), 12, 1, [0.2], 3, flat=True)
    if name == "unequal noise":
        return make(name, net(2, 2, 3), 12, 3, [0.03, 0.3, 1.0], 4)
    if name == "far from the start":
        return make(name, net(2, 3, 2), 8, 2, [0.3, 0.3], 5, prior_std=1e-3, mean="zero")
    if name == "a ratio between layers":
        return make(name, net(2, 3, 2), 8, 2, [0.3, 0.3], 6, prior_std={"0": 0.2, "2": 1.0})
    if name == "one example":
        return make(name, net(2, 2, 2), 1, 2, [0.3, 0.3], 7)
    if name == "nothing to learn":
        one = make(name, net(2, 2, 1), 14, 1, [0.3], 8, flat=True)
        left = scipy.linalg.null_space(one.J.T)[:, 0]
        return Task(one.net, one.x, torch.from_numpy(one.m[:, 0] + left))
    assert name.startswith("two summits")
    # Eigenvalues 1e4, 1 and 0 of K, four each: either the noise explains the last four alone and the prior is large, or
    # the noise explains eight and the prior is a hundredth.
    tilt = 4.0 if name.endswith("left") else 0.5
    U = scipy.stats.ortho_group.rvs(12, random_state=np.random.RandomState(0))
    x = torch.from_numpy(U[:, :8] * np.repeat([1e2, 1.0], 4))
    y = torch.from_numpy(U @ np.sqrt(np.repeat([tilt, 1.0, 1e-4], 4)))
    return Task(nn.Linear(8, 1, bias=False).double(), x, y, mean="zero")


TASKS = [
    "p < nc",
    "p > nc",
    "one output",
    "unequal noise",
    "far from the start",
    "a ratio between layers",
    "one example",
    "nothing to learn",
    "two summits, left",
    "two summits, right",
]
LAYERED = ["p < nc", "p > nc", "one output", "unequal noise", "far from the start"]
SCALES = np.logspace(-4, 4, 81)
NOISES = np.logspace(-4, 2, 61)


@functools.cache
def grid(name):
    """Evidence over 81 prior scales and 61 noises, (81, 61), by an eigendecomposition."""
    it = task(name)
    values, vectors = np.linalg.eigh(it.kernels.sum(0) if np.ptp(it.s) == 0 else it.K / it.s.max() ** 2)
    squares = (vectors.T @ it.r) ** 2
    variances = SCALES[:, None, None] ** 2 * np.maximum(values, 0) + NOISES[None, :, None] ** 2
    return -0.5 * (np.log(2 * np.pi * variances) + squares / variances).sum(-1)


def assert_summit(it, K, noise, value, *, prior=True, outputs=False):
    """No small step in what was learned gains anything."""
    for step in (0.97, 0.995, 1.005, 1.03):
        if prior:
            assert it.evidence(K * step**2, noise) <= value + 10 * ROUNDING
        assert outputs or it.evidence(K, noise * step) <= value + 10 * ROUNDING
        for k in range(it.c if outputs else 0):
            one = noise.copy()
            one[k] *= step
            assert it.evidence(K, one) <= value + 10 * ROUNDING


def summits(values):
    """How high each strict local maximum of a grid is."""
    inner = np.ones_like(values, dtype=bool)
    inner[[0, -1], :] = inner[:, [0, -1]] = False
    for i, j in itertools.product((-1, 0, 1), repeat=2):
        if i or j:
            inner &= values > np.roll(values, (i, j), (0, 1))
    return np.sort(values[inner])[::-1]


def test_the_grid_is_the_evidence():
    it = task("p < nc")
    i, j = 42, 33
    want = oracles.log_evidence(it.J, np.full(it.J.shape[1], SCALES[i]), it.m, it.y.numpy(), NOISES[j])
    assert grid("p < nc")[i, j] == pytest.approx(want, rel=1e-9)
    assert float(it.evidence(it.K * SCALES[i] ** 2, np.array([NOISES[j]]))) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_two_summits_are_two(side):
    high, low = summits(grid(f"two summits, {side}"))
    assert 0.3 < high - low < 10


@pytest.mark.parametrize("name", TASKS)
def test_one_prior_and_one_noise_are_not_below_the_best_of_a_grid(name):
    it = task(name)
    found = it.found()
    assert found.value >= grid(name).max() - ROUNDING
    factor = np.abs(found.K).max() / np.abs(it.K).max()  # one factor on gp's prior
    oracles.assert_close(found.K, factor * it.K, DOUBLE, factor=1e4)
    assert np.ptp(found.noise) == 0
    if name not in ("one example", "nothing to learn"):
        assert_summit(it, found.K, found.noise, found.value)


def test_of_one_example_the_evidence_is_that_of_the_best_variance():
    """A ridge of equals: only the evidence is determined."""
    it = task("one example")
    assert it.found().value >= grid("one example").max() - ROUNDING


@pytest.mark.parametrize("noise_std", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("name", ["p < nc", "p > nc", "two summits, left"])
def test_a_noise_that_is_given_is_held(name, noise_std):
    it = task(name)
    found = it.found(noise_std=noise_std)
    assert (found.noise == noise_std).all()
    scales = np.logspace(-4, 4, 401)
    kernels = it.kernels.sum(0) * scales[:, None, None] ** 2
    assert found.value >= it.evidence(kernels, np.array([noise_std])).max() - ROUNDING


def test_one_noise_an_output_that_is_given_is_held():
    it = task("unequal noise")
    found = it.found(noise_std=[0.05, 0.2, 0.9])
    np.testing.assert_array_equal(found.noise, [0.05, 0.2, 0.9])
    scales = np.logspace(-4, 4, 401)
    best = it.evidence(it.K * scales[:, None, None] ** 2, np.array([0.05, 0.2, 0.9])).max()
    assert found.value >= best - ROUNDING


@pytest.mark.parametrize("prior_std", [0.02, 0.7, 20.0])
@pytest.mark.parametrize("name", ["p < nc", "p > nc", "far from the start", "two summits, right"])
def test_a_prior_that_is_given_is_held(name, prior_std):
    it = task(name)
    found = it.found(prior_std=prior_std)
    want = it.kernels.sum(0) * prior_std**2
    oracles.assert_close(found.K, want, DOUBLE, factor=1e3)
    noises = np.logspace(-4, 2, 601)
    # Where K has not full rank, its rounded zero eigenvalues stand beside the noise in the determinant.
    rounding = max(ROUNDING, oracles.eps(DOUBLE) * np.trace(want) / float(np.min(found.noise)) ** 2)
    assert found.value >= it.evidence(want, noises[:, None]).max() - rounding
    assert_summit(it, found.K, found.noise, found.value, prior=False)


def test_a_mapping_of_priors_that_is_given_is_held():
    it = task("p > nc")
    found = it.found(prior_std={"0": 0.3, "2": 2.0})
    want = 0.09 * it.kernels[0] + 4 * it.kernels[1]
    oracles.assert_close(found.K, want, DOUBLE, factor=1e3)
    noises = np.logspace(-4, 2, 601)
    assert found.value >= it.evidence(want, noises[:, None]).max() - ROUNDING


def test_with_both_given_nothing_is_learned():
    it = task("p > nc")
    found = it.found(prior_std=0.5, noise_std=0.2)
    assert (found.noise == 0.2).all()
    oracles.assert_close(found.K, 0.25 * it.K, DOUBLE, factor=1e3)


@pytest.mark.parametrize("name", LAYERED)
def test_one_prior_a_layer_is_not_below_the_best_of_a_grid(name):
    it = task(name)
    assert len(it.layers) == 2
    scales, noises = np.logspace(-3, 3, 31), np.logspace(-3, 1, 21)
    squares = scales**2
    kernels = squares[:, None, None, None] * it.kernels[0] + squares[None, :, None, None] * it.kernels[1]
    best = max(it.evidence(kernels, np.array([noise])).max() for noise in noises)
    found = it.found(prior_std="layers")
    assert found.value >= best - ROUNDING
    assert found.value >= it.found().value - ROUNDING, "more freedom, less evidence"
    # K is a sum of the layers' kernels, each with a factor that is not negative
    factors = np.linalg.lstsq(it.kernels.reshape(2, -1).T, found.K.reshape(-1), rcond=None)[0]
    oracles.assert_close(np.tensordot(factors, it.kernels, 1), found.K, DOUBLE, factor=1e6)
    assert (factors >= -1e-12 * np.abs(factors).max()).all()
    for l, step in itertools.product(range(2), (0.9, 0.98, 1.02, 1.1)):
        moved = found.K + (step**2 - 1) * factors[l] * it.kernels[l]
        assert it.evidence(moved, found.noise) <= found.value + 100 * ROUNDING


@pytest.mark.parametrize("name", ["p < nc", "p > nc", "unequal noise"])
def test_one_noise_an_output_is_not_below_the_best_of_a_grid(name):
    it = task(name)
    found = it.found(noise_std="outputs")
    assert found.value >= it.found().value - ROUNDING
    noises = np.logspace(-2, 1, 16)
    combinations = np.array(list(itertools.product(noises, repeat=it.c)))
    for scale in np.logspace(-2, 2, 17):
        assert found.value >= it.evidence(it.K * scale**2, combinations).max() - ROUNDING
    assert_summit(it, found.K, found.noise, found.value, outputs=True)


def test_one_noise_an_output_finds_unequal_noises():
    noise = task("unequal noise").found(noise_std="outputs").noise
    assert noise[2] > 2 * noise[1] > 4 * noise[0]


@pytest.mark.parametrize("name", ["p > nc", "unequal noise"])
def test_layers_and_outputs_together(name):
    it = task(name)
    value = it.found(prior_std="layers", noise_std="outputs").value
    assert value >= it.found(prior_std="layers").value - ROUNDING
    assert value >= it.found(noise_std="outputs").value - ROUNDING


def test_layers_with_a_noise_that_is_held():
    it = task("p > nc")
    found = it.found(prior_std="layers", noise_std=0.2)
    assert (found.noise == 0.2).all()
    squares = np.logspace(-3, 3, 61) ** 2
    kernels = squares[:, None, None, None] * it.kernels[0] + squares[None, :, None, None] * it.kernels[1]
    assert found.value >= it.evidence(kernels, np.array([0.2])).max() - ROUNDING


@pytest.mark.parametrize("factor", [1e-5, 1e-2, 1e3, 1e6])
@pytest.mark.parametrize("prior_std", ["shared", "layers"])
def test_units_of_the_targets_do_not_matter(factor, prior_std):
    """y in other units: noise and prior in other units, and the evidence shifted by the log of the factor."""
    it = make("units", net(2, 3, 1), 12, 1, [0.2], 3, flat=True, mean="zero")
    scaled = Task(it.net, it.x, it.y * factor, mean="zero")
    one, two = it.found(prior_std=prior_std), scaled.found(prior_std=prior_std)
    assert two.value == pytest.approx(one.value - 12 * np.log(factor), abs=1e-4)
    assert two.noise / factor == pytest.approx(one.noise, rel=1e-2)


@pytest.mark.parametrize("start", [1e-5, 1e-1, 1e5])
def test_the_start_does_not_matter(start):
    it = task("p < nc")
    other = Task(it.net, it.x, it.y, prior_std=start)
    oracles.assert_close(other.found().K, it.found().K, SINGLE, factor=1e4)
    assert other.found().value == pytest.approx(it.found().value, abs=ROUNDING)


def test_the_model_given_is_left_as_it_was():
    it = task("p > nc")
    before = it.gp.predict(it.x).covariance.clone()
    gp = it.found().gp
    assert gp is not it.gp
    assert torch.equal(it.gp.predict(it.x).covariance, before)
    assert isinstance(gp, jacana.TangentGP)


def test_it_is_the_same_every_time(generators_untouched):
    it = task("unequal noise")
    one, two = it.found(prior_std="layers", noise_std="outputs"), it.found(prior_std="layers", noise_std="outputs")
    assert one.value == two.value
    np.testing.assert_array_equal(one.noise, two.noise)


def test_data_from_a_loader(generators_untouched):
    it = task("p > nc")
    loader = DataLoader(TensorDataset(it.x, it.y), batch_size=4)
    _, likelihood = jacana.maximize_evidence(it.gp, loader)
    noise = it.found().noise
    assert float(likelihood.noise_std) == pytest.approx(noise[0], rel=1e-6)


def test_of_a_network_in_single_precision():
    it = task("p < nc")
    single = zoo.mlp(2, 2, 2)
    single.load_state_dict(it.net.state_dict())
    gp, likelihood = jacana.maximize_evidence(jacana.TangentGP(single), it.x, it.y)
    K = gp.predict(it.x).covariance.numpy()
    value = it.evidence(K, np.full(2, float(likelihood.noise_std)))
    assert value >= grid("p < nc").max() - 1e-3


@pytest.mark.parametrize("target", ["the prior mean", "in the span"])
def test_targets_without_noise_end_in_numbers_or_an_error(target):
    """The evidence has no upper bound there: never a NaN, an endless search or a bare exception."""
    it = task("p > nc")
    y = it.m if target == "the prior mean" else it.m + (it.J @ np.ones(it.J.shape[1])).reshape(it.m.shape)
    try:
        gp, likelihood = jacana.maximize_evidence(it.gp, it.x, torch.from_numpy(y))
        prediction = gp.condition(it.x, torch.from_numpy(y), likelihood=likelihood).predict(it.x)
    except jacana.errors.JacanaError as error:
        assert len(str(error)) > 40  # noqa: PT017
        return
    assert torch.isfinite(prediction.mean).all()
    assert (prediction.variance >= 0).all()
    assert (prediction.mean - torch.from_numpy(y)).abs().max() < 0.1


def test_what_was_learned_conditions():
    """The line of the README: learn, then condition."""
    it = task("p > nc")
    gp, likelihood = jacana.maximize_evidence(it.gp, it.x, it.y)
    post = gp.condition(it.x, it.y, likelihood=likelihood)
    K, noise = gp.predict(it.x).covariance.numpy(), float(likelihood.noise_std)
    want = it.m.reshape(-1) + K @ np.linalg.solve(K + noise**2 * np.eye(len(K)), it.r)
    oracles.assert_close(
        post.predict(it.x).mean,
        want.reshape(it.m.shape),
        DOUBLE,
        condition=np.linalg.cond(K + noise**2 * np.eye(len(K))),
        scale=10,
    )


def test_layer_kernels_that_do_not_fit_are_computed_again(monkeypatch):
    from jacana.linearization import kernel

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    y = torch.sin(2 * x.sum(1, keepdim=True)) + 0.05 * torch.randn(12, 1, dtype=torch.float64)

    def learned():
        gp, likelihood = jacana.maximize_evidence(jacana.TangentGP(net), x, y, prior_std="layers")
        return gp.condition(x, y, likelihood=likelihood).log_evidence

    kept = learned()
    monkeypatch.setattr(kernel, "fits", lambda nbytes, device: False)
    lin = jacana.linearize(net)
    again = kernel.layer_kernels(lin, lin.examples(x), kernel.Prior.of(lin.network, 1.0))
    assert isinstance(again, kernel.Recomputed)
    assert len(again) == 2
    torch.testing.assert_close(sum(again[:]), jacana.gram(net, x))
    torch.testing.assert_close(learned(), kept, rtol=1e-9, atol=1e-9)
